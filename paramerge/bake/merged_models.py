"""The checkpoints that the values of a plan's base are made of, where it is a merge: for the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paramerge.checkpoints.layout import Base
from paramerge.files.source import Source


@dataclass(frozen=True)
class MergedModels:
    """Models, and what was made of them.

    Attributes
    ----------
    models:
        All of them; the first is the plan's base, whose layout the output has.
    steps:
        JSON-ready: each merge with its method, inputs (``model 1``, ``step 1``) and parameters.
    components:
        By component, the model that it is taken from as it is.
    counts:
        JSON-ready: how many tensors are merged, kept from the first, left out.
    title:
        A description of the merge, in a few words.
    packages:
        The version of every package that added a method.
    """

    models: tuple[Base, ...]
    steps: tuple[Mapping[str, object], ...] = field(repr=False)
    components: Mapping[str, str]
    prune: bool
    counts: Mapping[str, int]
    title: str
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def others(self) -> tuple[Base, ...]:
        """All models but the first."""
        return self.models[1:]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The open weight files of all models but the first."""
        return tuple(dict.fromkeys(source for model in self.others for source in model.weight_sources))
