"""The adapters of a plan: trained by the project's own trainer, kept, and found again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paramerge.errors import FileFormatError, NonFiniteError, ParamergeError
from paramerge.files.source import Source
from paramerge.files.writer import make_folder, write_bytes
from paramerge.regular_files import is_there
from paramerge.strict_json import read_object
from paramerge.training.config_file import config_to_toml
from paramerge.training.evaluation.processes import Processes
from paramerge.training.experiments.plan import Plan, Training
from paramerge.training.loop import train
from paramerge.training.pictures import CAPTION_SUFFIX, data_hash, find_pictures

__all__ = ["Kept", "diverged", "kept", "train_missing"]

Report = Callable[[int, int], None]

_LAUNCHER = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
)


@dataclass(frozen=True)
class Kept:
    """An adapter after some steps of its training.

    Attributes
    ----------
    paths:
        Its files or folders.
    seconds:
        The time of its training in all, with loading the model at each of its stops.
    parameters, bytes:
        Of the files' tensors (without LoRA's alphas), and of the files. DreamBooth's are the UNet's.
    """

    paths: tuple[Path, ...]
    seconds: float
    parameters: int
    bytes: int


def train_missing(
    plan: Plan,
    folder: Path,
    device: str,
    processes: Processes | None = None,
    report: Report | None = None,
) -> None:
    """Train the adapters that ``folder`` does not have yet; a training that was stopped goes on where it was.

    One that diverges ends there: that is its outcome (:func:`diverged`), and the others go on.

    With several processes each trains its share alone, as one process would: the batch of a step stays the
    plan's.

    Parameters
    ----------
    report:
        Called with this process's optimiser steps done and in all.

    Raises
    ------
    UsageError, OutputError
        As :func:`paramerge.training.loop.train` does.
    """
    processes = processes or Processes()
    missing = [
        t
        for t in plan.trainings
        if any(not _note(plan, t, folder, stop).is_file() for stop in t.stops)
        and diverged(plan, t, folder) is None
    ]
    processes.wait()  # all have looked before any trains
    mine = processes.share(missing)
    total, done = sum(training.stops[-1] for training in mine), 0
    for training in mine:
        for stop in training.stops:
            if not (_note(plan, training, folder, stop).is_file() or diverged(plan, training, folder)):
                before = done

                def step(steps: int, *_: object, before: int = before) -> None:
                    if report is not None:
                        report(before + steps, total)

                _train(plan, training, folder, stop, device, processes.count == 1, step)
        checkpoints = _place(plan, training, folder) / "checkpoints"
        shutil.rmtree(checkpoints, ignore_errors=True)  # all stops are kept: nothing will be resumed
        done += training.stops[-1]
        if report is not None:
            report(done, total)
    processes.wait()


def kept(plan: Plan, training: Training, folder: Path, steps: int) -> Kept:
    """The adapter of ``training`` after ``steps``.

    Raises
    ------
    FileFormatError
        It is not there, or its note is damaged.
    """
    note = _note(plan, training, folder, steps)
    try:
        content = read_object(note)
        paths = tuple(note.parent / name for name in content["files"])
        return Kept(paths, float(content["seconds"]), int(content["parameters"]), int(content["bytes"]))
    except (FileFormatError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError("this adapter is not there, or its note is damaged", where=note) from error


def diverged(plan: Plan, training: Training, folder: Path) -> str | None:
    """The reason why ``training`` ended before its last stop, in words; None where it did not."""
    for stop in training.stops:
        try:
            found = read_object(_note(plan, training, folder, stop)).get("diverged")
        except FileFormatError:
            continue
        if found is not None:
            return str(found)
    return None


def _place(plan: Plan, training: Training, folder: Path) -> Path:
    return folder / f"{training.name}-seed{plan.seed}"


def _note(plan: Plan, training: Training, folder: Path, steps: int) -> Path:
    return _place(plan, training, folder) / f"at-{steps:06d}" / "adapter.json"


def _train(
    plan: Plan,
    training: Training,
    folder: Path,
    stop: int,
    device: str,
    here: bool,
    report: Callable[..., None],
) -> None:
    place = _place(plan, training, folder)
    make_folder(place)
    config = replace(
        training.config(plan.model, plan.data, place, stop, plan.seed),
        instance_folder=_pictures(training, place),
        device=device,
    )
    note = _note(plan, training, folder, stop)
    try:
        if here:
            with contextlib.redirect_stdout(io.StringIO()):  # libraries' own words
                result = train(config, resume=True, report=report)
            adapter, seconds = result.adapter, result.seconds
        else:
            adapter, seconds = _elsewhere(config, place, device)
            report(stop)
    except NonFiniteError as error:
        make_folder(note.parent)
        words = f"{error.what} ({error.where})"
        write_bytes(note, (json.dumps({"diverged": words}, indent=1) + "\n").encode())
        return
    if note.parent.exists():
        shutil.rmtree(note.parent)  # a crash between moving and writing the note; it is made anew
    make_folder(note.parent)
    before = sum(
        kept(plan, training, folder, earlier).seconds for earlier in training.stops if earlier < stop
    )
    files = []
    for path in adapter:
        target = note.parent / path.relative_to(place)
        make_folder(target.parent)
        path.replace(target)
        files.append(str(path.relative_to(place)))
    parameters, size = _size([note.parent / name for name in files], training.method)
    content = {"files": files, "seconds": before + seconds, "parameters": parameters, "bytes": size}
    write_bytes(note, (json.dumps(content, indent=1) + "\n").encode())


def _pictures(training: Training, place: Path) -> Path:
    """The subject's folder, or one with as many of its pictures as the training takes."""
    if training.pictures is None:
        return training.subject.folder
    chosen = find_pictures(training.subject.folder, "--data")[: training.pictures]
    folder = place / "pictures"
    make_folder(folder)
    for path in chosen:
        write_bytes(folder / path.name, _content(path))
        caption = path.with_suffix(CAPTION_SUFFIX)
        if is_there(caption):
            write_bytes(folder / caption.name, _content(caption))
    return folder


def _content(path: Path) -> bytes:
    source = Source.open(path)
    return source.read(0, source.size)


def _elsewhere(config: Any, place: Path, device: str) -> tuple[tuple[Path, ...], float]:
    """Train in a process of its own, that knows nothing of the others which accelerate started."""
    file = place / "training.toml"
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in _LAUNCHER and not key.startswith(("ACCELERATE_", "TORCHELASTIC_"))
    }
    if device.startswith("cuda:"):
        visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        number = int(device.removeprefix("cuda:"))
        environment["CUDA_VISIBLE_DEVICES"] = visible[number] if len(visible) > number else str(number)
        config = replace(config, device="cuda")
    write_bytes(file, config_to_toml(config).encode())
    command = [sys.executable, "-m", "paramerge.training", "--config", str(file), "--resume", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == NonFiniteError.exit_code:
        raise NonFiniteError("the training diverged", where=place.name)
    if done.returncode:
        raise ParamergeError(
            "a training failed",
            where=place,
            found="\n".join(done.stderr.strip().splitlines()[-5:]),
            hint=f"try it alone: python -m paramerge.training --config {file} --resume",
        )
    answer = json.loads(done.stdout)
    return tuple(Path(path) for path in answer["adapter"]), float(answer["seconds"])


def _size(paths: Sequence[Path], method: str) -> tuple[int, int]:
    """Parameters and bytes of safetensors files."""
    import math

    from safetensors import safe_open

    files = [
        file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.safetensors")))
    ]
    if method == "dreambooth":
        files = [file for file in files if file.parent.name == "unet"]
    parameters = 0
    for file in files:
        with safe_open(file, "numpy") as tensors:
            parameters += sum(
                math.prod(tensors.get_slice(key).get_shape())
                for key in tensors.keys()  # noqa: SIM118
                if not key.endswith(".alpha")
            )
    return parameters, sum(file.stat().st_size for file in files)


def data_identity(plan: Plan) -> str:
    """SHA-256 of all the subjects' pictures."""
    return data_hash([file for s in plan.data.subjects for file in find_pictures(s.folder, "--data")])
