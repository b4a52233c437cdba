"""Carrying out a plan: from the base's files to the output, in one pass, nothing half done left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from paramerge.apply.dense import LayerResult
from paramerge.apply.tensor_plan import FilePlan
from paramerge.arguments import as_path
from paramerge.bake.card import card_of_file, model_card
from paramerge.bake.job import Job, Progress
from paramerge.bake.output import check_output, write_companions
from paramerge.bake.plan import Plan
from paramerge.bake.spans import HashedSink
from paramerge.bake.survival import Survival, layer_data, refuse_loss
from paramerge.files.content_hash import TensorDigests
from paramerge.files.positioned import PositionedWriter, write_all_at
from paramerge.files.staging import new_folder
from paramerge.files.system_calls import BINARY
from paramerge.files.writer import check_written, new_file, output_error
from paramerge.summarised import Summarised


@dataclass(frozen=True, repr=False)
class BakeReport(Summarised):
    """The outcome of a bake.

    Attributes
    ----------
    output:
        The file or folder written.
    layers:
        Each changed layer, in file order: directions removed and rank of the change.
    survival:
        The part of each step's change that the output keeps.
    recipe:
        The recipe as it is in the output.
    seconds:
        Wall time of the work, without the start of Python.
    output_bytes:
        Bytes of the weights written.
    direct_writes:
        Whether the file system took direct writes.
    """

    output: Path
    layers: tuple[LayerResult, ...] = field(repr=False)
    survival: Survival = field(repr=False)
    recipe: dict[str, object] = field(repr=False)
    seconds: float
    output_bytes: int
    direct_writes: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of layers that keep too little."""
        return self.survival.warnings

    def summary(self) -> Mapping[str, object]:
        """The facts that it is shown by."""
        return {
            "output": self.output,
            "layers": len(self.layers),
            "bytes": self.output_bytes,
            "seconds": round(self.seconds, 2),
        }

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        return {
            "output": str(self.output),
            "layers": [layer_data(layer) for layer in self.layers],
            "survival": self.survival.as_dict(),
            "warnings": list(self.warnings),
            "recipe": self.recipe,
            "seconds": self.seconds,
            "output_bytes": self.output_bytes,
            "direct_writes": self.direct_writes,
        }


def bake(
    plan: Plan,
    output: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    base_sha256: Collection[str] = (),
) -> BakeReport:
    """Write the checkpoint that ``plan`` describes to ``output`` (a file, or a folder for a diffusers base).

    Arithmetic is in float32 or better with one rounding; tensors that the plan does not name keep their
    bytes. The same inputs, versions and options give the same bytes on processors of one kind.
    Every hash in the recipe is that of the bytes that were used.

    Parameters
    ----------
    overwrite:
        Whether a file at ``output`` may be replaced, or a folder that paramerge wrote.
    base_sha256:
        SHA-256 (hex) of the base that is meant, where it was looked for by hash: one of its files must have
        one of these. None given, any base will do.

    Raises
    ------
    InputChangedError
        An input was written to or replaced since it was opened.
    CheckpointError
        No file of the base has a hash of ``base_sha256``.
    OutputError
        ``output`` is one of the inputs, exists already, cannot be written, or the disk is full.
    NonFiniteError
        NaN or Inf in an adapter or in a result.
    LossError
        The output would keep less than half of a step, and its loss is not accepted. In every case of an
        error ``output`` is as it was.
    """
    began = time.perf_counter()
    output = check_output(plan, as_path(output, "output"), overwrite=overwrite)
    for layer in plan.dequantised:
        layer.open()  # a scale that is no number shows before the work
    job = _Writing(plan, progress, base_sha256)
    try:
        made = (_bake_folder if plan.base.is_folder else _bake_file)(job, output, overwrite)
    finally:
        job.stop_hashing()
    return BakeReport(
        output=output,
        layers=tuple(made.layers),
        survival=made.survival,
        recipe=made.recipe,
        seconds=time.perf_counter() - began,
        output_bytes=plan.output_bytes,
        direct_writes=job.direct,
    )


@dataclass(frozen=True)
class _Made:
    layers: list[LayerResult]
    survival: Survival
    recipe: dict[str, object]


def _bake_file(job: _Writing, output: Path, overwrite: bool) -> _Made:
    (file,) = job.plan.files
    with (
        _card_beside(job.plan, output, overwrite) as write_card,
        new_file(output, overwrite=overwrite) as descriptor,
    ):
        layers = job.write(file, descriptor)
        survival = job.finish_measuring()
        job.finish_hashing()
        recipe = job.recipe()
        job.write_header(file, descriptor, recipe)
        write_card(recipe)
        job.check_inputs()
    return _Made(layers, survival, recipe)


@contextmanager
def _card_beside(plan: Plan, output: Path, overwrite: bool) -> Iterator[Callable[[dict[str, object]], None]]:
    """Give what writes the card of a file, if one is asked for; it gets its name after the file has."""
    if not plan.options.card:
        yield lambda recipe: None
        return
    with new_file(card_of_file(output), overwrite=overwrite) as descriptor:
        yield lambda recipe: write_all_at(descriptor, model_card(plan, recipe), 0)


def _bake_folder(job: _Writing, output: Path, overwrite: bool) -> _Made:
    layers: list[LayerResult] = []
    with new_folder(output, overwrite=overwrite) as folder:
        for file in job.plan.files:
            layers += _in_folder(job, file, folder, lambda fd, file=file: job.write(file, fd))  # type: ignore[misc]
        survival = job.finish_measuring()
        job.finish_hashing()
        recipe = job.recipe()
        for file in job.plan.files:
            _in_folder(job, file, folder, lambda fd, file=file: job.write_header(file, fd, recipe))  # type: ignore[misc]
        write_companions(job.plan, folder, recipe)
        job.check_inputs()
    return _Made(layers, survival, recipe)


_Result = TypeVar("_Result")


def _in_folder(job: _Writing, file: FilePlan, folder: Path, action: Callable[[int], _Result]) -> _Result:
    path = folder / file.relative
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | BINARY, 0o666)
        try:
            result = action(descriptor)
            os.fsync(descriptor)
            return result
        finally:
            os.close(descriptor)
    except OSError as error:
        raise output_error(error, path) from error


class _Writing(Job):
    """A job whose bytes go into files."""

    direct = False
    """Whether the file system took direct writes."""

    def write(self, file: FilePlan, descriptor: int) -> list[LayerResult]:
        """Write all tensors of ``file`` at their places, and hash them where the recipe is to have that."""
        writer = PositionedWriter(descriptor, self._size(file))
        self.direct = self.direct or writer.is_direct
        try:
            if not self.plan.has_content_hash:
                return self.stream(file, writer)
            digests = TensorDigests()
            layers = self.stream(file, HashedSink(writer, self.spans(file), digests))
            self.learn_content(file, digests)
            return layers
        finally:
            writer.close()

    def finish_measuring(self) -> Survival:
        """Take the part of each step that is kept into the recipe; refuse a loss that is not accepted."""
        survival = super().finish_measuring()
        if not self.plan.options.accept_loss:
            refuse_loss(survival)
        return survival

    def write_header(self, file: FilePlan, descriptor: int, recipe: dict[str, object]) -> None:
        """Write the header, last, when every hash is known; its length was fixed before."""
        header = self.header(file, recipe)
        write_all_at(descriptor, header, 0)
        check_written(descriptor, header, self._size(file), file.relative)

    def _size(self, file: FilePlan) -> int:
        return self.data_start(file) + sum(tensor.nbytes for tensor in file.tensors)
