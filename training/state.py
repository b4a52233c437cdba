"""A training's checkpoint: all that it takes to go on as if it had not stopped, in one safetensors file.

What is drawn depends on the seed and the step alone (:mod:`paramerge.training.chance`), so parameters, the
optimiser's moments, the average and the number of steps are all there is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from paramerge.checkpoints.writer import write_bytes
from paramerge.errors import CheckpointError, OutputError

__all__ = ["TrainingState", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_KEY = "paramerge.training"
_NAME = re.compile(r"step-(\d{8})\.safetensors")


@dataclass
class TrainingState:
    """What changes while training; ``parameters`` and ``average`` go by the same names."""

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] = field(default_factory=dict)
    """The moving average, float32; empty without one."""
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """The loss of each step so far."""
    scale: dict[str, Any] = field(default_factory=dict)
    """The gradient scaler's, in float16."""


def save_checkpoint(state: TrainingState, folder: Path, identity: Mapping[str, Any], limit: int) -> Path:
    """Write ``step-00000123.safetensors`` whole or not at all; then remove all but ``limit`` (0: keep all).

    Raises
    ------
    OutputError
        It cannot be written, as on a full disk: those before it stay.
    """
    names = list(state.parameters)
    tensors: dict[str, Tensor] = {f"parameter.{name}": value for name, value in state.parameters.items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        for kind, value in moments.items():
            tensors[f"optimizer.{kind}.{names[index]}"] = torch.as_tensor(value)
    facts = {**identity, "step": state.step, "losses": state.losses, "scale": state.scale}
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder cannot be made ({error.strerror})", where=folder) from error
    path = folder / f"step-{state.step:08d}.safetensors"
    write_bytes(path, save(plain, {_KEY: json.dumps(facts)}))
    if limit:
        for old in sorted(_checkpoints(folder))[:-limit]:
            old.unlink(missing_ok=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, or None."""
    return max(_checkpoints(folder), default=None)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)]


def load_checkpoint(state: TrainingState, path: Path, identity: Mapping[str, Any]) -> None:
    """Put what :func:`save_checkpoint` wrote into ``state``.

    Raises
    ------
    CheckpointError
        The file is damaged, or is of a run with other settings, data or batches.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"the training's checkpoint cannot be read ({error})", where=path) from error
    for name, value in identity.items():
        if facts.get(name) != value:
            raise CheckpointError(
                f"the checkpoint is of another run: its {name.replace('_', ' ')} differs",
                where=path,
                expected=value,
                found=facts.get(name),
                hint="resume with the settings and the pictures of then, or choose another output",
            )
    wanted = {f"parameter.{name}" for name in state.parameters}
    if missing := wanted - tensors.keys():
        raise CheckpointError(
            "parameters are missing in the checkpoint", where=path, found=sorted(missing)[0]
        )
    moments: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        for index, (name, parameter) in enumerate(state.parameters.items()):
            parameter.copy_(tensors[f"parameter.{name}"])
            if name in state.average:
                state.average[name].copy_(tensors[f"average.{name}"])
            ending = f".{name}"
            for key, value in tensors.items():
                if key.startswith("optimizer.") and key.endswith(ending):
                    kind = key.removeprefix("optimizer.").removesuffix(ending)
                    if "." not in kind:
                        moments.setdefault(index, {})[kind] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.step, state.losses, state.scale = facts["step"], facts["losses"], facts["scale"]
