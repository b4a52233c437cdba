"""Carrying out a plan: from the base's files to the output, in one pass, nothing half done left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from paramerge.adapters.overflow import overflowing
from paramerge.apply.kernel import LayerResult
from paramerge.apply.tensor_plan import FilePlan
from paramerge.bake.input_names import InputNames
from paramerge.bake.output import check_output, write_companions
from paramerge.bake.plan import Plan
from paramerge.bake.recipe import InputFile, build_recipe, output_metadata
from paramerge.bake.stream import TensorStream
from paramerge.bake.tasks import WORKERS, Task, make_tasks
from paramerge.checkpoints.layout import Base
from paramerge.errors import CheckpointError
from paramerge.files.hashing import HashBeside, cached_sha256
from paramerge.files.header import encode_header
from paramerge.files.positioned import PositionedWriter, write_all_at
from paramerge.files.private import public_metadata
from paramerge.files.source import Source, check_unchanged
from paramerge.files.staging import new_folder
from paramerge.files.system_calls import BINARY
from paramerge.files.writer import check_written, new_file, output_error
from paramerge.storage.marks import without_layers
from paramerge.wording import option

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; from several threads, but never from two at once."""

_UNKNOWN_HASH = "0" * 64
"""A placeholder in the header for a hash that is computed during the pass: same length, so no byte moves."""


@dataclass(frozen=True)
class BakeReport:
    """The outcome of a bake.

    Attributes
    ----------
    output:
        The file or folder written.
    layers:
        Each changed layer, in file order: directions removed and rank of the change.
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
    recipe: dict[str, object] = field(repr=False)
    seconds: float
    output_bytes: int
    direct_writes: bool

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        return {**asdict(self), "output": str(self.output)}


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
        NaN or Inf in an adapter or in a result. In every case of an error ``output`` is as it was.
    """
    began = time.perf_counter()
    output = check_output(plan, Path(output), overwrite=overwrite)
    for layer in plan.dequantised:
        layer.open()  # a scale that is no number shows before the work
    job = _Job(plan, progress, base_sha256)
    try:
        layers, recipe = (_bake_folder if plan.base.is_folder else _bake_file)(job, output, overwrite)
    finally:
        job.stop_hashing()
    return BakeReport(
        output=output,
        layers=tuple(layers),
        recipe=recipe,
        seconds=time.perf_counter() - began,
        output_bytes=plan.output_bytes,
        direct_writes=job.direct,
    )


def _bake_file(job: _Job, output: Path, overwrite: bool) -> tuple[list[LayerResult], dict[str, object]]:
    (file,) = job.plan.files
    with new_file(output, overwrite=overwrite) as descriptor:
        layers = job.stream(file, descriptor)
        job.finish_hashing()
        recipe = job.recipe()
        job.write_header(file, descriptor, recipe)
        job.check_inputs()
    return layers, recipe


def _bake_folder(job: _Job, output: Path, overwrite: bool) -> tuple[list[LayerResult], dict[str, object]]:
    layers: list[LayerResult] = []
    with new_folder(output, overwrite=overwrite) as folder:
        for file in job.plan.files:
            layers += _in_folder(job, file, folder, lambda fd, file=file: job.stream(file, fd))  # type: ignore[misc]
        job.finish_hashing()
        recipe = job.recipe()
        for file in job.plan.files:
            _in_folder(job, file, folder, lambda fd, file=file: job.write_header(file, fd, recipe))  # type: ignore[misc]
        write_companions(job.plan, folder, recipe)
        job.check_inputs()
    return layers, recipe


_Result = TypeVar("_Result")


def _in_folder(job: _Job, file: FilePlan, folder: Path, action: Callable[[int], _Result]) -> _Result:
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


class _Job:
    """The state of one bake: hashes known so far, bytes done, and the header each file will get."""

    def __init__(self, plan: Plan, progress: Progress | None, base_sha256: Collection[str]) -> None:
        self.plan = plan
        self.direct = False
        self._progress = progress
        self._total = sum(tensor.info.nbytes for file in plan.files for tensor in file.tensors)
        self._done = 0
        self._lock = threading.Lock()
        self._wanted = frozenset(base_sha256)
        self._hashes = {
            # a base that was found by its hash is not believed to have it because the cache says so
            source: None if self._wanted else cached_sha256(source)
            for source in plan.base.weight_sources
        }
        others = plan.merged.sources if plan.merged is not None else ()
        self._hashes |= {source: cached_sha256(source) for source in others if source not in self._hashes}
        self._others = [source for source in others if self._hashes[source] is None]
        self._hashers: dict[Source, HashBeside] = {}
        self._step_files = [
            [
                InputFile.of(source, source.sha256(), name)
                for source, name in zip(step.adapter.opened, names.files, strict=True)
            ]
            for step, names in zip(plan.steps, plan.names[len(plan.names) - len(plan.steps) :], strict=True)
        ]

    def stream(self, file: FilePlan, descriptor: int) -> list[LayerResult]:
        """Write all tensors of ``file`` at their places, and learn the source's SHA-256 on the way."""
        source = file.source.header.source
        data_start = len(self._header(file, self.recipe()))
        tasks = iter(make_tasks(file.tensors, data_start))
        size = data_start + sum(tensor.nbytes for tensor in file.tensors)
        writer = PositionedWriter(descriptor, size)
        self.direct = self.direct or writer.is_direct
        before = self._done
        self._hash_others()
        hasher = None if self._hashes[source] else HashBeside(source, lambda: self._done - before)
        try:
            layers = self._run_workers(source, writer, tasks)
            if hasher is not None:
                self._hashes[source] = hasher.result()
        finally:
            if hasher is not None:
                hasher.stop()
            writer.close()
        order = {name: index for index, name in enumerate(str(e.target.module) for e in self.plan.edits)}
        return sorted(layers, key=lambda layer: order[layer.name])

    def _hash_others(self) -> None:
        """Begin to hash the files of other models, which are read at about the pace of the whole work."""
        for source in self._others:
            if source not in self._hashers:
                share = source.size / max(1, self._total)
                self._hashers[source] = HashBeside(source, lambda share=share: int(self._done * share))  # type: ignore[misc]

    def finish_hashing(self) -> None:
        """Wait for the hashes of other models."""
        for source, hasher in self._hashers.items():
            self._hashes[source] = hasher.result()

    def stop_hashing(self) -> None:
        """Give up hashes that nobody waits for any more."""
        for hasher in self._hashers.values():
            hasher.stop()

    def recipe(self) -> dict[str, object]:
        """The recipe, with zeros for hashes that are not known yet."""
        models = (self.plan.base, *(self.plan.merged.others if self.plan.merged else ()))
        base, *others = [
            self._described(model, names) for model, names in zip(models, self.plan.names, strict=False)
        ]
        return build_recipe(self.plan, base, self._step_files, others)

    def _described(self, model: Base, names: InputNames) -> list[InputFile]:
        return [
            InputFile.of(source, self._hashes[source] or _UNKNOWN_HASH, name)
            for source, name in zip(model.weight_sources, names.files, strict=True)
        ]

    def write_header(self, file: FilePlan, descriptor: int, recipe: dict[str, object]) -> None:
        """Write the header, last, when every hash is known; its length was fixed before."""
        header = self._header(file, recipe)
        write_all_at(descriptor, header, 0)
        size = len(header) + sum(tensor.nbytes for tensor in file.tensors)
        check_written(descriptor, header, size, file.relative)

    def check_inputs(self) -> None:
        """Refuse inputs that changed since they were opened, and a base that is not the one looked for."""
        check_unchanged(*self.plan.opened)
        if self._wanted and self._wanted.isdisjoint(digest for digest in self._hashes.values() if digest):
            raise CheckpointError(
                "the base that was found is not the one that was looked for",
                where=self.plan.base.path,
                expected="a file with the SHA-256 " + " or ".join(sorted(self._wanted)),
                found=", ".join(sorted(digest for digest in self._hashes.values() if digest)),
                hint=f"give the base that is meant: {option('base', 'model.safetensors')}",
            )

    def _header(self, file: FilePlan, recipe: dict[str, object]) -> bytes:
        source = file.source.header
        entries = [(t.info.key, t.dtype, t.shape, t.nbytes) for t in file.tensors]
        if not file.touched and self.plan.base.is_folder:
            public = public_metadata(source.metadata)
            if not self.plan.options.private or public == source.metadata:
                return source.source.read(0, source.data_start)  # an untouched component keeps every byte
            return encode_header(entries, public)
        metadata = without_layers(source.metadata, file.dequantised)
        return encode_header(entries, output_metadata(metadata, self.plan, recipe))

    def _run_workers(
        self, source: Source, writer: PositionedWriter, tasks: Iterator[Task]
    ) -> list[LayerResult]:
        stop = threading.Event()

        def work() -> list[LayerResult]:
            torch.set_num_threads(1)  # the workers are the parallelism; more threads would only contend
            layers: list[LayerResult] = []
            stream = TensorStream(source, writer, self._report)
            try:
                while not stop.is_set():
                    with self._lock:
                        task = next(tasks, None)
                    if task is None:
                        break
                    with overflowing():
                        layers += stream.run(task)
            except BaseException:
                stop.set()
                raise
            return layers

        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(WORKERS, thread_name_prefix="bake") as pool:
                futures = [pool.submit(work) for _ in range(WORKERS)]
                try:
                    wait(futures, return_when=FIRST_EXCEPTION)
                except BaseException:  # Ctrl-C: let the workers end their task, then leave
                    stop.set()
                    raise
                return [layer for future in futures for layer in future.result()]
        finally:
            torch.set_num_threads(threads)

    def _report(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)
