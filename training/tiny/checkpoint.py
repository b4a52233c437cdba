"""Everything a part needs to go on exactly where it stopped, in one safetensors file.

Batches depend on the seed and the step alone, so weights, their average, the optimiser's state and the number
of steps are all there is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from paramerge.checkpoints.writer import write_bytes
from paramerge.errors import CheckpointError

__all__ = ["TrainingState", "load_state", "save_state"]

_KEY = "paramerge.training"


@dataclass
class TrainingState:
    """A part in training: ``model`` is trained, ``average`` follows it and is what is used."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Steps and the mean loss since the entry before."""


def save_state(state: TrainingState, path: Path, identity: str) -> None:
    """Write ``state`` whole or not at all; ``identity`` says what it belongs to."""
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
    """Read what :func:`save_state` wrote into ``state``.

    Raises
    ------
    CheckpointError
        The file is damaged, or is of a run with another seed, size or data.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the training checkpoint cannot be read ({error})", where=path) from error
    if facts.get("identity") != identity:
        raise CheckpointError(
            "the training checkpoint is of another run",
            where=path,
            expected=identity,
            found=facts.get("identity"),
            hint="give the same options as then, or another --out",
        )
    for name, module in (("model", state.model), ("average", state.average)):
        module.load_state_dict(_under(name, tensors))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _under("optimizer", tensors).items():
        number, _, moment = key.partition(".")
        moments.setdefault(int(number), {})[moment] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.step, state.seconds = facts["step"], facts["seconds"]
    state.curve = [(step, loss) for step, loss in facts["curve"]]


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
