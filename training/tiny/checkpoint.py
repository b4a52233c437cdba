"""The state that a part needs to go on exactly where it stopped, in one safetensors file.

Batches depend on the seed and the step alone, so weights, their average, the optimiser's state and the number
of steps are all there is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from paramerge.files.writer import write_bytes
from paramerge.training.checkpoint_file import CheckpointFile, open_checkpoint

__all__ = ["TrainingState", "load_state", "save_state"]

_KEY = "paramerge.training"


@dataclass
class TrainingState:
    """A part in training: ``model`` is trained, ``average`` follows it and is the one that is used."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Steps and the mean loss since the entry before."""


def save_state(state: TrainingState, path: Path, identity: str) -> None:
    """Write ``state`` whole or not at all; ``identity`` names its run."""
    tensors = {f"model.{key}": value for key, value in state.model.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in state.average.state_dict().items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in moments.items()}
    facts = {
        "identity": identity,
        "step": state.step,
        "seconds": state.seconds,
        "curve": state.curve,
    }
    copies = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_bytes(path, save(copies, {_KEY: json.dumps(facts)}))


def load_state(state: TrainingState, path: Path, identity: str) -> None:
    """Read a file of :func:`save_state` into ``state``.

    Raises
    ------
    CheckpointError
        The file is damaged, or is of a run with another seed, size or data.
    FileFormatError
        It is no safetensors file.
    """
    file = open_checkpoint(path, _KEY)
    file.check_identity({"identity": identity}, "give the same options as then, or another --out")
    step, seconds = file.natural("step"), file.number("seconds", file.facts.get("seconds"))
    curve = file.facts.get("curve")
    if not isinstance(curve, list) or not all(isinstance(e, list) and len(e) == 2 for e in curve):
        raise file.damaged("the checkpoint's curve of losses cannot be read")
    points = [(int(file.number("curve", at)), file.number("curve", loss)) for at, loss in curve]
    tensors = file.read(_expected(state, file))
    for name, module in (("model", state.model), ("average", state.average)):
        module.load_state_dict(_under(name, tensors))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _under("optimizer", tensors).items():
        number, _, moment = key.partition(".")
        moments.setdefault(int(number), {})[moment] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.step, state.seconds, state.curve = step, seconds, points


def _expected(state: TrainingState, file: CheckpointFile) -> dict[str, torch.Tensor]:
    """A tensor like each that the file must hold; parameters that nothing moved yet have no moments."""
    like = {f"model.{key}": value for key, value in state.model.state_dict().items()}
    like |= {f"average.{key}": value for key, value in state.average.state_dict().items()}
    for number, parameter in enumerate(state.model.parameters()):
        if f"optimizer.{number}.step" in file.header.tensors:
            like[f"optimizer.{number}.step"] = torch.zeros(())
            like |= {f"optimizer.{number}.{kind}": parameter for kind in ("exp_avg", "exp_avg_sq")}
    return like


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
