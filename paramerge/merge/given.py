"""The inputs handed to a merge: adapters or checkpoints, never both as inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramerge.apply.given import Adapter, PathLike, step_of
from paramerge.apply.steps import Step
from paramerge.checkpoints.foreign import is_checkpoint
from paramerge.checkpoints.layout import Base
from paramerge.errors import ParamergeError, UsageError
from paramerge.files.header import read_header
from paramerge.shipped import named_model
from paramerge.wording import option

if TYPE_CHECKING:
    from paramerge.adapters import Adapter as OpenedAdapter


class Given:
    """The inputs of a merge, by kind."""

    def __init__(self, inputs: Iterable[Adapter | Step | PathLike | OpenedAdapter | Base] | PathLike) -> None:
        self.all: Any = inputs
        """The inputs as they were handed over, for a verb that refuses anything but a list."""
        if isinstance(inputs, (str, os.PathLike)) and str(inputs).endswith(".toml"):
            inputs = [inputs]
        self.is_list = not isinstance(inputs, (str, os.PathLike, Adapter, Step)) and isinstance(
            inputs, Iterable
        )
        self.inputs: list[Any] = list(inputs) if self.is_list else []  # type: ignore[arg-type]

    @property
    def adapters(self) -> Any:
        """The adapters for :func:`paramerge.apply.given.open_given`."""
        return self.inputs if self.is_list else self.all


def gives_checkpoint(given: Given, *, asked: bool) -> bool:
    """Whether checkpoints are merged: by a recipe, by the inputs, or by options of theirs (``asked``).

    Raises
    ------
    UsageError
        Adapters and checkpoints together.
    """
    if len(given.inputs) == 1 and str(given.inputs[0]).endswith(".toml"):
        return True
    kinds = [_is_checkpoint(each) for each in given.inputs]
    models = [each for each, is_model in zip(given.inputs, kinds, strict=True) if is_model]
    others = [each for each, is_model in zip(given.inputs, kinds, strict=True) if not is_model]
    if models and others:
        adapter = Path(str(getattr(others[0], "path", others[0])))
        raise UsageError(
            "adapters and checkpoints are not merged with each other",
            where=adapter,
            expected="checkpoints, or adapters",
            found=f"{len(models)} checkpoints and {len(others)} other files",
            hint=f"to bake an adapter into what the checkpoints are merged to, give it apart: "
            f"{option('lora', f'{adapter.name}@0.6')}",
        )
    return bool(models) or (
        asked and bool(given.inputs) and all(isinstance(i, (str, os.PathLike)) for i in given.inputs)
    )


def _is_checkpoint(given: object) -> bool:
    """Whether it is a checkpoint, by its header; a file that cannot be read is for its verb to refuse."""
    if isinstance(given, Base):
        return True
    if not isinstance(given, (str, os.PathLike)):
        return False
    try:
        path = named_model(step_of(given).path)
        if path.is_dir():
            return not (path / "adapter_config.json").exists() and (
                (path / "model_index.json").exists()
                or (path / "config.json").exists()
                or (path / "unet").is_dir()
            )
        return path.suffix != ".toml" and path.is_file() and is_checkpoint(read_header(path).tensors)
    except (ParamergeError, OSError, ValueError):
        return False
