"""The output folder of a training: new or empty, or a run that is resumed; never an input."""

from __future__ import annotations

import os
from pathlib import Path

from paramerge.errors import OutputError, ParamergeError, UsageError
from paramerge.files.outputs import check_output_folder
from paramerge.files.writer import make_folder
from paramerge.regular_files import is_there
from paramerge.shipped import named_model
from paramerge.training.config import TrainConfig
from paramerge.training.config_file import config_from_toml
from paramerge.training.sources import input_folders
from paramerge.training.state import latest_checkpoint

__all__ = ["check_run_folder"]

_FILES = (
    *("config.toml", "log.jsonl", "loss.png", "adapter.safetensors", "embedding.safetensors"),
    *("adapter", "model"),
    *("samples", "checkpoints"),
)
"""The files and folders that a training writes."""


def check_run_folder(config: TrainConfig, resume: bool) -> None:
    """Refuse an output in which a training would write over files that are not its own; else make it.

    Raises
    ------
    UsageError
        It holds a training, and ``resume`` is not set.
    OutputError
        It holds other files, or is an input or inside one.
    """
    folder = config.output
    inputs = [named_model(config.model), *input_folders(config)]
    if config.class_folder is not None:
        inputs.append(config.class_folder)
        _refuse_class_pictures(folder, config.class_folder)
    run = _run_in(folder, config)
    if run is not None and not resume:
        raise UsageError(
            "there is a training in this folder already",
            where="output",
            expected="a new folder, or --resume to go on",
            found=run,
        )
    # a folder to resume in may hold its owner's files beside the run, but none under the run's names
    files = () if run is not None else _FILES if resume else None
    check_output_folder(folder, inputs, files=files)
    make_folder(folder)


def _run_in(folder: Path, config: TrainConfig) -> Path | None:
    """The evidence that a training of paramerge wrote into ``folder``; None without any."""
    newest = latest_checkpoint(folder / "checkpoints")
    if newest is not None:
        return newest
    noted = folder / "config.toml"
    if not is_there(noted):
        return None
    try:
        same = config_from_toml(noted) == config
    except ParamergeError:
        return None
    # the log comes just after the configuration: one without a log is ours only if it is this very one
    return noted if same or (folder / "log.jsonl").is_file() else None


def _refuse_class_pictures(folder: Path, pictures: Path) -> None:
    """Refuse an output among the pictures of the class, which need not be there yet."""
    real = Path(os.path.realpath(folder))
    if real.is_relative_to(os.path.realpath(pictures)):
        raise OutputError(
            "the output is the folder of the class's pictures, or inside it",
            where=folder,
            found=pictures,
            hint="give another output",
        )
