"""An output made again, tensor by tensor, and held against what is on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from paramerge.apply.tensor_plan import FilePlan
from paramerge.bake.job import Job, Progress
from paramerge.bake.output import companions
from paramerge.bake.plan import Plan
from paramerge.files.content_hash import HEADER_KEY, TensorDigests
from paramerge.files.header import Header
from paramerge.files.recipe_text import RECIPE_KEY, parsed_recipe
from paramerge.files.source import Source
from paramerge.verify.comparing import Comparer
from paramerge.verify.output import Output, content_hash
from paramerge.verify.verdict import TensorDifference

_OF_A_VERSION = (RECIPE_KEY, "modelspec.description")
"""Metadata that another version of paramerge may write otherwise."""


@dataclass(frozen=True)
class Made:
    """The outcome of making an output again.

    Attributes
    ----------
    differences:
        Tensors whose values differ.
    others:
        Everything else that differs: tensors, metadata, companions, a line each.
    content:
        The content hash of each file of weights as it is on the disk, where the recipe has one.
    tensors, bytes:
        The number of tensors that were made, and their bytes.
    """

    differences: tuple[TensorDifference, ...]
    others: tuple[str, ...]
    content: Mapping[PurePosixPath, str]
    tensors: int
    bytes: int


def make_again(plan: Plan, output: Output, progress: Progress | None) -> Made:
    """Compute all that ``plan`` would write, and compare; memory is bounded as that of a bake.

    Raises
    ------
    InputChangedError
        An input, or the output, was written to meanwhile.
    NonFiniteError
        A result is not finite.
    """
    job = Job(plan, progress)
    try:
        return _Making(job, plan, output).made()
    finally:
        job.stop_hashing()


class _Making:
    """One comparison under way."""

    def __init__(self, job: Job, plan: Plan, output: Output) -> None:
        self.job, self.plan, self.output = job, plan, output
        self.others: list[str] = []
        self.differences: list[TensorDifference] = []
        self.content: dict[PurePosixPath, str] = {}
        self.same_version = _version(output.recipe) == _version(job.recipe())
        self.unequal = () if _versions(output.recipe) == _versions(job.recipe()) else ("survival",)
        """Entries of the recipe that other versions and instructions may round otherwise."""

    def made(self) -> Made:
        present = [(file, header) for file in self.plan.files if (header := self._header_of(file))]
        for file, header in present:
            self._compare(file, header)
        self.job.finish_measuring()
        self.job.finish_hashing()
        recipe = self.job.recipe() | {"versions": (self.output.recipe or {}).get("versions")}
        for file, header in present:
            self.others += self._other_headers(file, header, recipe)
        if self.output.is_folder:
            self.others += self._other_companions(recipe)
        self.job.check_inputs()
        for _, header in present:
            header.source.check_unchanged()
        tensors = [tensor for file, _ in present for tensor in file.tensors]
        return Made(
            tuple(self.differences),
            tuple(self.others),
            self.content,
            len(tensors),
            sum(tensor.nbytes for tensor in tensors),
        )

    def _header_of(self, file: FilePlan) -> Header | None:
        place = file.relative if self.output.is_folder else PurePosixPath()
        return self.output.headers.get(place)

    def _name(self, file: FilePlan) -> str:
        return str(file.relative) if self.output.is_folder else self.output.path.name

    def _compare(self, file: FilePlan, header: Header) -> None:
        digests = TensorDigests() if self.plan.has_content_hash else None
        comparer = Comparer(self._name(file), header, file, self.job.spans(file), digests)
        self.job.stream(file, comparer)
        self.differences += comparer.differences
        others = list(comparer.other_tensors)
        self.others += others
        if digests is None:
            return
        self.job.learn_content(file, digests)
        if others:  # tensors that were not looked at
            self.content[file.relative] = content_hash(header, lambda _: None)
        else:
            self.content[file.relative] = self.job.content[file.relative]

    def _other_headers(self, file: FilePlan, header: Header, recipe: dict[str, object]) -> Iterator[str]:
        name = self._name(file)
        made = self.job.header(file, recipe)
        if header.source.read(8, header.data_start).rstrip() == made[8:].rstrip():
            return
        others = self._other_metadata(header.metadata, _metadata(made))
        for entry in others:
            yield f"{name}: {entry}"
        keys = [tensor.info.key for tensor in file.tensors]
        if list(header.tensors) != keys and sorted(header.tensors) == sorted(keys):
            yield f"{name}: the tensors are in another order"

    def _other_metadata(self, found: Mapping[str, str], made: Mapping[str, str]) -> list[str]:
        keys = [
            key for key in sorted({*found, *made}) if found.get(key) != made.get(key) and key != HEADER_KEY
        ]
        if not self.same_version:
            keys = [key for key in keys if key not in _OF_A_VERSION]
        entries = _other_entries(found.get(RECIPE_KEY), made.get(RECIPE_KEY))
        if entries and {*entries} <= {*self.unequal}:
            keys = [key for key in keys if key != RECIPE_KEY]
        named = f" ({', '.join(entries)})" if entries else ""
        return [f"metadata {key}{named if key == RECIPE_KEY else ''}" for key in keys]

    def _other_companions(self, recipe: dict[str, object]) -> Iterator[str]:
        for relative, blocks in companions(self.plan, recipe):
            path = self.output.path / relative
            if not path.is_file():
                yield f"{relative} is missing"
            elif not _holds(path, blocks):
                yield f"{relative} is not that of the base"


def _holds(path: Path, blocks: Iterable[bytes | memoryview]) -> bool:
    """Whether the file at ``path`` is these blocks, one after the other."""
    source, place = Source.open(path), 0
    for block in blocks:
        end = place + len(block)
        if end > source.size or source.read(place, end) != block:
            return False
        place = end
    return place == source.size


def _versions(recipe: Mapping[str, Any] | None) -> Mapping[str, object]:
    versions = (recipe or {}).get("versions")
    return versions if isinstance(versions, dict) else {}


def _version(recipe: Mapping[str, Any] | None) -> object:
    return _versions(recipe).get("paramerge")


def _metadata(header: bytes) -> Mapping[str, str]:
    metadata: Mapping[str, str] = json.loads(header[8:]).get("__metadata__", {})
    return metadata


def _other_entries(found: str | None, made: str | None) -> list[str]:
    """The names of a recipe's entries that differ."""
    if found is None or made is None:
        return []
    try:
        ours, theirs = parsed_recipe(made), parsed_recipe(found)
    except ValueError:
        return []
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
