"""A training's checkpoint: all that it takes to go on as if it had not stopped, in one safetensors file.

The draws depend on the seed and the step alone (:mod:`paramerge.training.chance`), so parameters, the
optimiser's moments, the average and the number of steps are the whole state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from paramerge.errors import NonFiniteError, OutputError
from paramerge.files.writer import write_bytes
from paramerge.training.checkpoint_file import CheckpointFile, open_checkpoint

__all__ = [
    "TrainingState",
    "latest_checkpoint",
    "load_checkpoint",
    "packed",
    "save_checkpoint",
    "unpack",
]

_KEY = "paramerge.training"
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, beside the number of its steps; each of its parameter's shape."""
_NAME = re.compile(r"step-(\d{8})\.safetensors")


@dataclass
class TrainingState:
    """The changing part of a training; ``parameters`` and ``average`` go by the same names."""

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] = field(default_factory=dict)
    """The moving average, float32; empty without one."""
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """The loss of each step so far."""
    scale: dict[str, Any] = field(default_factory=dict)
    """The gradient scaler's, in float16."""


def packed(state: TrainingState) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All of ``state`` as plain facts and named tensors; :func:`unpack` takes them."""
    names = list(state.parameters)
    moved = state.optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {f"parameter.{name}": value for name, value in state.parameters.items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    for index, moments in moved.items():
        for kind, value in moments.items():
            tensors[f"optimizer.{kind}.{names[index]}"] = torch.as_tensor(value)
    facts = {"step": state.step, "losses": state.losses, "scale": state.scale}
    facts["moments"] = [names[index] for index in moved]
    return facts, {key: value.detach() for key, value in tensors.items()}


def unpack(state: TrainingState, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put the result of :func:`packed`, of the same training, into ``state``."""
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
        for name, value in state.average.items():
            value.copy_(tensors[f"average.{name}"])
    places = {name: index for index, name in enumerate(state.parameters)}
    moments: dict[int, dict[str, Tensor]] = {places[name]: {} for name in facts["moments"]}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, kind, name = key.split(".", 2)
            moments[places[name]][kind] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.step, state.losses, state.scale = facts["step"], list(facts["losses"]), dict(facts["scale"])


def save_checkpoint(state: TrainingState, folder: Path, identity: Mapping[str, Any], limit: int) -> Path:
    """Write ``step-00000123.safetensors`` whole or not at all; keep ``limit`` and one more (0: all).

    The one beyond the limit is there to fall back to: the newest may come from a training that goes wrong.

    Raises
    ------
    NonFiniteError
        A tensor holds NaN or Inf: nothing is written.
    OutputError
        It cannot be written, as on a full disk: those before it stay.
    """
    facts, tensors = packed(state)
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                "the training diverged: its weights are not finite",
                where=f"step {state.step}: {key}",
                hint="resume from the last checkpoint with a smaller learning rate, or without fp16",
            )
    plain = {key: value.cpu().contiguous().clone() for key, value in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder cannot be made ({error.strerror})", where=folder) from error
    path = folder / f"step-{state.step:08d}.safetensors"
    write_bytes(path, save(plain, {_KEY: json.dumps({**identity, **facts})}))
    if limit:
        for old in sorted(_checkpoints(folder))[: -limit - 1]:
            old.unlink(missing_ok=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, or None."""
    return max(_checkpoints(folder), default=None)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)]


def load_checkpoint(state: TrainingState, path: Path, identity: Mapping[str, Any]) -> None:
    """Put the checkpoint of :func:`save_checkpoint` into ``state``, which stays as it was where that is
    refused.

    Raises
    ------
    CheckpointError
        The file is damaged, or is of a run with other settings, data or batches.
    FileFormatError
        It is no safetensors file.
    """
    file = open_checkpoint(path, _KEY)
    file.check_identity(
        identity, "resume with the settings and the pictures of then, or choose another output"
    )
    step = file.natural("step")
    losses, scale = file.facts.get("losses"), file.facts.get("scale")
    if not isinstance(losses, list) or len(losses) != step:
        raise file.damaged(
            "the checkpoint does not have the loss of each of its steps",
            expected=f"{step} numbers",
            found=f"{len(losses)} entries" if isinstance(losses, list) else json.dumps(losses),
        )
    numbers = [file.number("loss", loss) for loss in losses]
    if not isinstance(scale, dict):
        raise file.damaged("the checkpoint's scale of gradients cannot be read", found=json.dumps(scale))
    for value in scale.values():
        file.number("scale of gradients", value)
    tensors = file.read(_expected(state, file))
    moved = _with_moments(state, file)
    _check_moments(moved, file, tensors, step)
    unpack(state, {"step": step, "losses": numbers, "scale": scale, "moments": moved}, tensors)


def _expected(state: TrainingState, file: CheckpointFile) -> dict[str, Tensor]:
    """A tensor like each that the file must hold."""
    like: dict[str, Tensor] = {f"parameter.{name}": value for name, value in state.parameters.items()}
    like |= {f"average.{name}": value for name, value in state.average.items()}
    for name in _with_moments(state, file):
        like |= {f"optimizer.{kind}.{name}": state.parameters[name] for kind in _MOMENTS}
        like[f"optimizer.step.{name}"] = torch.zeros(())
    return like


def _with_moments(state: TrainingState, file: CheckpointFile) -> list[str]:
    """The parameters that the optimiser has moved so far: a layer that nothing reaches has no moments."""
    noted = file.facts.get("moments")
    if not isinstance(noted, list) or not set(map(str, noted)) <= state.parameters.keys():
        raise file.damaged(
            "the checkpoint does not say of which parameters it has the optimiser's moments",
            expected="names of its parameters",
            found=json.dumps(noted),
        )
    return [str(name) for name in noted]


def _check_moments(moved: list[str], file: CheckpointFile, tensors: Mapping[str, Tensor], step: int) -> None:
    for name in moved:
        found = {kind: tensors[f"optimizer.{kind}.{name}"] for kind in ("step", *_MOMENTS)}
        if not 0 < float(found["step"]) <= step or bool((found["exp_avg_sq"] < 0).any()):
            raise file.damaged("the optimiser's moments are impossible", where=name)
