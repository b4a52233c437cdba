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
from paramerge.training.moments import (
    blank_moments,
    group_numbers,
    moments_of,
    put_group_numbers,
    put_moments,
)

__all__ = [
    "TrainingState",
    "latest_checkpoint",
    "load_checkpoint",
    "packed",
    "save_checkpoint",
    "unpack",
]

_KEY = "paramerge.training"
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
    moving: tuple[str, ...] = ()
    """The numbers in the optimiser's groups that change from step to step."""
    validation: dict[int, float] = field(default_factory=dict)
    """The loss of held-out pictures after the steps at which it was measured."""


def packed(state: TrainingState) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All of ``state`` as plain facts and named tensors; :func:`unpack` takes them."""
    tensors: dict[str, Tensor] = {f"parameter.{name}": value for name, value in state.parameters.items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    moved = moments_of(state.optimizer, state.parameters)
    numbers: dict[str, dict[str, Any]] = {}
    for name, moments in moved.items():
        for kind, value in moments.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{kind}.{name}"] = value
            else:
                numbers.setdefault(name, {})[kind] = value
    facts = {
        "step": state.step,
        "losses": state.losses,
        "scale": state.scale,
        "moments": list(moved),
        "numbers": numbers,
        "groups": group_numbers(state.optimizer, state.moving),
        "validation": [list(pair) for pair in state.validation.items()],
    }
    return facts, {key: value.detach() for key, value in tensors.items()}


def unpack(state: TrainingState, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put the result of :func:`packed`, of the same training, into ``state``."""
    moments = {name: dict(facts["numbers"].get(name, {})) for name in facts["moments"]}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, kind, name = key.split(".", 2)
            moments[name][kind] = value
    for name, kept in moments.items():  # before the parameters change: the first moments were of the start
        put_moments(state.optimizer, state.parameters[name], kept)
    put_group_numbers(state.optimizer, facts["groups"])
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
        for name, value in state.average.items():
            value.copy_(tensors[f"average.{name}"])
    state.step, state.losses, state.scale = facts["step"], list(facts["losses"]), dict(facts["scale"])
    state.validation = dict(facts["validation"])


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
    losses = [file.number("loss", loss) for loss in losses]
    if not isinstance(scale, dict):
        raise file.damaged("the checkpoint's scale of gradients cannot be read", found=json.dumps(scale))
    for value in scale.values():
        file.number("scale of gradients", value)
    blank = {
        name: blank_moments(state.optimizer, state.parameters[name]) for name in _with_moments(state, file)
    }
    numbers = _numbers(file, blank)
    groups = _groups(file, state)
    tensors = file.read(_expected(state, blank))
    _check_moments(file, blank, tensors, numbers, step)
    facts: dict[str, Any] = {"step": step, "losses": losses, "scale": scale, "moments": list(blank)}
    facts |= {"numbers": numbers, "groups": groups, "validation": _validation(file, step)}
    unpack(state, facts, tensors)


def _expected(state: TrainingState, blank: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """A tensor like each that the file must hold."""
    like: dict[str, Tensor] = {f"parameter.{name}": value for name, value in state.parameters.items()}
    like |= {f"average.{name}": value for name, value in state.average.items()}
    for name, moments in blank.items():
        tensors = {kind: value for kind, value in moments.items() if isinstance(value, Tensor)}
        like |= {f"optimizer.{kind}.{name}": value for kind, value in tensors.items()}
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


def _numbers(file: CheckpointFile, blank: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The moments that are plain numbers, of the kinds that the optimiser has."""
    wanted = {
        name: {kind for kind, value in moments.items() if not isinstance(value, Tensor)}
        for name, moments in blank.items()
    }
    wanted = {name: kinds for name, kinds in wanted.items() if kinds}
    noted = file.facts.get("numbers", {})
    if not isinstance(noted, dict) or {
        name: set(each) if isinstance(each, dict) else None for name, each in noted.items()
    } != dict(wanted):
        raise file.damaged(
            "the checkpoint does not have the numbers of this optimiser",
            expected=", ".join(sorted(set().union(*wanted.values()))) or "none",
            found=json.dumps(noted),
        )
    return {
        name: {kind: _same_kind(file, kind, value) for kind, value in each.items()}
        for name, each in noted.items()
    }


def _groups(file: CheckpointFile, state: TrainingState) -> list[dict[str, float]]:
    """The numbers of the optimiser's groups, by the names that may be there."""
    here = group_numbers(state.optimizer, state.moving)
    noted = file.facts.get("groups", here)
    fits = isinstance(noted, list) and len(noted) == len(here)
    if not fits or not all(isinstance(g, dict) and set(g) <= set(state.moving) for g in noted):
        raise file.damaged(
            "the checkpoint does not have the numbers of this optimiser's groups",
            expected=", ".join(state.moving) or f"{len(here)} groups without any",
            found=json.dumps(noted),
        )
    return [{name: _same_kind(file, name, value) for name, value in group.items()} for group in noted]


def _validation(file: CheckpointFile, step: int) -> list[tuple[int, float]]:
    """The steps, and the loss of held-out pictures after each."""
    noted = file.facts.get("validation", [])
    pairs = isinstance(noted, list) and all(isinstance(each, list) and len(each) == 2 for each in noted)
    if not pairs or not all(type(at) is int and 0 < at <= step for at, _ in noted):
        raise file.damaged(
            "the checkpoint's losses of held-out pictures cannot be read",
            expected="steps with a number each",
            found=json.dumps(noted),
        )
    return [(at, file.number("loss of held-out pictures", loss)) for at, loss in noted]


def _same_kind(file: CheckpointFile, name: str, value: Any) -> float:
    """A finite number; a whole one stays whole."""
    number = file.number(name, value)
    return value if isinstance(value, int) else number


def _check_moments(
    file: CheckpointFile,
    blank: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Mapping[str, float]],
    step: int,
) -> None:
    for name, moments in blank.items():
        found = {kind: tensors.get(f"optimizer.{kind}.{name}") for kind in moments}
        count = numbers.get(name, {}).get("step", found.get("step"))
        negative = any(
            value is not None and kind.startswith("exp_avg_sq") and bool((value < 0).any())
            for kind, value in found.items()
        )
        if negative or (count is not None and not 0 < float(count) <= step):
            raise file.damaged("the optimiser's moments are impossible", where=name)
