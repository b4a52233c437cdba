"""Candidates: the adapters that may be in a checkpoint, opened, and matched with the base's layers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from paramerge.adapters import Adapter, LayerModule, ParaModule
from paramerge.adapters.changes import Change, Difference, Product
from paramerge.adapters.contract import AdditiveModule
from paramerge.apply.given import PathLike
from paramerge.errors import ParamergeError
from paramerge.formats import open_adapter
from paramerge.inspect.folder import is_collection, models_in
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.models.names import ModuleName
from paramerge.resolve.weights import BaseWeights


@dataclass(frozen=True)
class Candidate:
    """An adapter that may be in the checkpoint.

    Attributes
    ----------
    name:
        Its file, for people.
    adapter:
        With the base's names for its layers.
    """

    name: str
    adapter: Adapter = field(repr=False)

    @property
    def modules(self) -> Mapping[ModuleName, LayerModule]:
        """Its layers."""
        return self.adapter.modules

    @property
    def kind(self) -> str:
        """``para``, ``additive`` or ``dependent``: the part that the weight has in its change."""
        if self.adapter.family == "para":
            return "para"
        dependent = any(module.depends_on_weight for module in self.modules.values())
        return "dependent" if dependent else "additive"


def open_candidates(
    given: Iterable[PathLike | Adapter], base: BaseWeights, interpretation: Interpretation = BY_TRAINER
) -> tuple[list[Candidate], dict[str, str]]:
    """Open adapters: single ones, and all that are in folders.

    Returns
    -------
    The candidates, and what is in the folders but is none, each with the reason.

    Raises
    ------
    ParamergeError
        An adapter that was given by itself cannot be opened, or is for another model.
    """
    candidates: list[Candidate] = []
    left_out: dict[str, str] = {}
    for one in given:
        if isinstance(one, Adapter):
            candidates.append(_candidate(one.path.name, one, base))
            continue
        path = Path(one)
        if not is_collection(path):
            candidates.append(_candidate(path.name, open_adapter(path, interpretation=interpretation), base))
            continue
        for found in models_in(path):
            name = os.fspath(found.relative_to(path))
            try:
                adapter = open_adapter(found, interpretation=interpretation)
                candidates.append(_candidate(name, adapter, base))
            except ParamergeError as error:
                left_out[name] = error.what
    return _once_each(candidates, left_out), left_out


def _candidate(name: str, adapter: Adapter, base: BaseWeights) -> Candidate:
    return Candidate(name, base.check(adapter))


def _once_each(candidates: list[Candidate], left_out: dict[str, str]) -> list[Candidate]:
    """The candidates without copies of one file, with a name each."""
    known: dict[tuple[str, ...], str] = {}
    result = []
    for candidate in candidates:
        content = tuple(source.sha256() for source in candidate.adapter.opened)
        if content in known:
            left_out[candidate.name] = f"the same file as {known[content]}"
            continue
        known[content] = candidate.name
        result.append(candidate)
    names = Counter(candidate.name for candidate in result)
    return [one if names[one.name] == 1 else replace(one, name=str(one.adapter.path)) for one in result]


def change_of(module: LayerModule, W: np.ndarray) -> Change:
    """The change that a module makes of ``W`` (d, k) at strength 1, alone."""
    if isinstance(module, AdditiveModule):
        return module.change()
    if isinstance(module, ParaModule):
        return projection(module.directions().Q, W)
    return Difference(module.delta(W))


def projection(Q: np.ndarray, W: np.ndarray) -> Product:
    """``-Q Q^T W`` as a product of thin factors, Q (d, r)."""
    return Product(-Q, Q.T @ W, 1.0)
