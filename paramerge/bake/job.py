"""The work of a bake without its output: tensors computed in one pass, hashes learnt on the way, headers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import PurePosixPath

from paramerge.apply.dense import LayerResult
from paramerge.apply.tensor_plan import FilePlan
from paramerge.bake.input_names import InputNames
from paramerge.bake.plan import Plan
from paramerge.bake.recipe import InputFile, build_recipe, output_metadata
from paramerge.bake.spans import Sink, TensorSpans
from paramerge.bake.survival import Survival, survival_of, widest
from paramerge.bake.tasks import make_tasks
from paramerge.bake.workers import run_tasks
from paramerge.checkpoints.layout import Base
from paramerge.errors import CheckpointError
from paramerge.files.content_hash import HEADER_KEY, ZEROS, TensorDigests, sealed_header
from paramerge.files.hashing import HashBeside, cached_sha256, source_sha256
from paramerge.files.header import encode_header
from paramerge.files.private import public_metadata
from paramerge.files.source import Source, check_unchanged
from paramerge.storage.marks import without_layers
from paramerge.wording import option

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; from several threads, but never from two at once."""

_Entry = tuple[str, str, tuple[int, ...], int]
"""Key, dtype, shape and bytes of a tensor in the output."""


class Job:
    """The state of one bake: hashes known so far, bytes done, and the header each file will get."""

    def __init__(
        self, plan: Plan, progress: Progress | None = None, base_sha256: Collection[str] = ()
    ) -> None:
        self.plan = plan
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
        self._companions = [
            InputFile.of(source, source_sha256(source), str(relative))
            for relative, source in zip(plan.base.companions, plan.base.companion_files, strict=True)
        ]
        self._layers: list[LayerResult] = []
        self._survival: Survival | None = None
        self.content: dict[PurePosixPath, str] = {}
        self._data_starts: dict[PurePosixPath, int] = {}
        self._step_files = [
            [
                InputFile.of(source, source.sha256(), name)
                for source, name in zip(step.adapter.opened, names.files, strict=True)
            ]
            for step, names in zip(plan.steps, plan.names[len(plan.names) - len(plan.steps) :], strict=True)
        ]

    def data_start(self, file: FilePlan) -> int:
        """The place of the first tensor in the output file."""
        if file.relative not in self._data_starts:  # a header may have a million tensors
            self._data_starts[file.relative] = len(self.header(file, self.recipe()))
        return self._data_starts[file.relative]

    def spans(self, file: FilePlan) -> TensorSpans:
        """The places of the tensors in the output file."""
        return TensorSpans(file.tensors, self.data_start(file))

    def learn_content(self, file: FilePlan, digests: TensorDigests) -> None:
        """Take the content hash of ``file`` into the recipe."""
        self.content[file.relative] = digests.content_sha256(entry[:3] for entry in _entries(file))

    def stream(self, file: FilePlan, sink: Sink) -> list[LayerResult]:
        """Send all tensors of ``file`` to ``sink``, and learn the source's SHA-256 on the way."""
        source = file.source.header.source
        tasks = iter(make_tasks(file.tensors, self.data_start(file)))
        before = self._done
        self._hash_others()
        hasher = None if self._hashes[source] else HashBeside(source, lambda: self._done - before)
        try:
            layers = run_tasks(source, sink, tasks, self._report)
            if hasher is not None:
                self._hashes[source] = hasher.result()
        finally:
            if hasher is not None:
                hasher.stop()
        order = {name: index for index, name in enumerate(str(e.target.module) for e in self.plan.edits)}
        layers.sort(key=lambda layer: order[layer.name])
        self._layers += layers
        return layers

    def finish_measuring(self) -> Survival:
        """Take the part of each step that all tensors sent so far keep into the recipe."""
        self._survival = survival_of(self.plan, self._layers)
        return self._survival

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
        """The recipe, with zeros for hashes that are not known yet, and room for what is not measured yet."""
        models = (self.plan.base, *(self.plan.merged.others if self.plan.merged else ()))
        base, *others = [
            self._described(model, names) for model, names in zip(models, self.plan.names, strict=False)
        ]
        content = {file.relative: self.content.get(file.relative, ZEROS) for file in self.plan.files}
        measured = widest(self.plan) if self._survival is None else self._survival.for_recipe()
        return build_recipe(
            self.plan,
            base,
            self._step_files,
            others,
            content if self.plan.has_content_hash else {},
            self._companions,
            measured,
        )

    def _described(self, model: Base, names: InputNames) -> list[InputFile]:
        return [
            InputFile.of(source, self._hashes[source] or ZEROS, name)
            for source, name in zip(model.weight_sources, names.files, strict=True)
        ]

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

    def header(self, file: FilePlan, recipe: dict[str, object]) -> bytes:
        """The header of the output file; of an untouched component, that of its source."""
        source = file.source.header
        if not file.touched and self.plan.base.is_folder:
            public = public_metadata(source.metadata)
            if not self.plan.options.private or public == source.metadata:
                return source.source.read(0, source.data_start)  # an untouched component keeps every byte
            return encode_header(_entries(file), public)
        kept = without_layers(source.metadata, file.dequantised)
        metadata = output_metadata(kept, self.plan, recipe) | {HEADER_KEY: ZEROS}
        length = self._data_starts.get(file.relative, 0)  # figures may be shorter than the room for them
        return sealed_header(encode_header(_entries(file), metadata, length=length))

    def _report(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)


def _entries(file: FilePlan) -> list[_Entry]:
    return [(t.info.key, t.dtype, t.shape, t.nbytes) for t in file.tensors]
