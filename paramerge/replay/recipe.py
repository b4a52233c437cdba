"""A recipe as data: the inputs by their hashes, and what is done with them (docs/recipe.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from paramerge.apply.given import Adapter
from paramerge.apply.steps import BakeOptions, Kind
from paramerge.errors import UsageError
from paramerge.interpretation import Interpretation
from paramerge.merge.checkpoints.request import RequestedStep
from paramerge.resolve.blocks import BlockWeights
from paramerge.wording import option


@dataclass(frozen=True)
class FileRecord:
    """A file that was an input; ``name`` is None in a private recipe."""

    name: str | None
    sha256: str
    size: int


@dataclass(frozen=True)
class ModelRecord:
    """A checkpoint that was an input, and the recipe that it carried itself."""

    name: str | None
    layout: str
    files: tuple[FileRecord, ...]
    recipe: Mapping[str, object] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class StepRecord:
    """An adapter that was applied."""

    kind: Kind
    strength: float
    blocks: BlockWeights | None
    files: tuple[FileRecord, ...]
    interpretation: Interpretation


@dataclass(frozen=True)
class MergeRecord:
    """A merge of several models: every model but the first, merges by numbers, components by model."""

    models: tuple[ModelRecord, ...]
    steps: tuple[RequestedStep, ...]
    components: Mapping[str, int]
    prune: bool


@dataclass(frozen=True)
class Recipe:
    """All that a bake or a merge of checkpoints can be done again with."""

    versions: Mapping[str, str]
    base: ModelRecord
    steps: tuple[StepRecord, ...]
    options: BakeOptions
    merge: MergeRecord | None = None
    companions: tuple[FileRecord, ...] = ()
    """The other files of the base's folder."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """The versions of packages that added what is used, by their names."""

    @property
    def models(self) -> tuple[ModelRecord, ...]:
        """The base, and all that is merged with it."""
        return (self.base, *(self.merge.models if self.merge is not None else ()))

    @property
    def files(self) -> Iterator[FileRecord]:
        """The files of all inputs."""
        every: tuple[ModelRecord | StepRecord, ...] = (*self.models, *self.steps)
        for given in every:
            yield from given.files

    def changed(
        self,
        strengths: Mapping[int, float],
        without: Collection[int],
        dtype: str | None,
        *,
        accept_loss: bool = False,
    ) -> Recipe:
        """A variant; steps are counted from 1.

        Raises
        ------
        UsageError
            There is no such step, or nothing is left to do.
        """
        steps = chosen(self.steps, strengths, without)
        if not steps and self.merge is None:
            raise UsageError("nothing is left to bake", where=option("without"))
        options = self.options if dtype is None else replace(self.options, dtype=dtype)
        if accept_loss:
            options = replace(options, accept_loss=True)
        return replace(self, steps=steps, options=options)


_Chosen = TypeVar("_Chosen", StepRecord, Adapter)


def chosen(
    steps: Sequence[_Chosen], strengths: Mapping[int, float], without: Collection[int]
) -> tuple[_Chosen, ...]:
    """The steps of a variant, at other strengths, less those left out; steps are counted from 1.

    Raises
    ------
    UsageError
        There is no such step, or one is changed and left out.
    """
    for name, numbers in (("set", strengths), ("without", without)):
        for number in numbers:
            if not 1 <= number <= len(steps):
                raise UsageError(
                    f"there is no step {number}",
                    where=option(name),
                    expected=f"1 to {len(steps)}, in order" if steps else "no step: there is none",
                    found=number,
                    hint="paramerge inspect shows the steps of a baked file",
                )
    if twice := sorted({*strengths} & {*without}):
        raise UsageError("a step is changed and left out", where=option("without"), found=twice[0])
    return tuple(
        replace(step, strength=strengths.get(number, step.strength))
        for number, step in enumerate(steps, 1)
        if number not in without
    )
