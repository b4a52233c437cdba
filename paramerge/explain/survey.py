"""First look: every changed layer with all candidates' changes, as if each had been applied alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from paramerge.adapters import LayerModule, ParaModule
from paramerge.adapters.changes import Change
from paramerge.adapters.contract import AdditiveModule
from paramerge.adapters.overflow import overflowing
from paramerge.explain.candidates import Candidate, change_of, projection
from paramerge.explain.directions import Directions, energy_directions, find_gone
from paramerge.explain.layer_fit import LayerFit
from paramerge.explain.swallowed import fitted
from paramerge.extract.difference import ChangedLayer, Differences
from paramerge.models.names import ModuleName

_AS_IT_WAS = 0.9
"""A direction keeps at least this part of its norm where a rank boundary left it alone."""


@dataclass(frozen=True)
class Seen:
    """A changed layer after the first look.

    ``taken`` has, for each PaRa at this layer, the directions that are gone, those gone but for others'
    additions, and all of them, as numbers; ``cut`` the PaRas of which a rank boundary took a part.
    """

    name: ModuleName
    fit: LayerFit
    taken: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    cut: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Survey:
    """All changed layers, and the number of those that are the base's."""

    layers: tuple[Seen, ...]
    unchanged: tuple[ModuleName, ...]


def survey(
    differences: Differences, candidates: Sequence[Candidate], progress: Callable[[int, int], None]
) -> Survey:
    """Look at every layer of both checkpoints, one at a time."""
    names = [*differences.layers, *differences.others]
    layers: list[Seen] = []
    unchanged: list[ModuleName] = []
    for done, name in enumerate(names):
        progress(done, len(names))
        layer = differences.at(name)
        if layer is None:
            unchanged.append(name)
            continue
        with overflowing():
            layers.append(_look(layer, modules_at(name, candidates)))
    return Survey(tuple(layers), tuple(unchanged))


def modules_at(name: ModuleName, candidates: Sequence[Candidate]) -> dict[int, LayerModule]:
    """By its place, the module of each candidate that has one for the layer."""
    return {i: one.modules[name] for i, one in enumerate(candidates) if name in one.modules}


def bases_of(layer: ChangedLayer, modules: Mapping[int, LayerModule]) -> dict[int, np.ndarray]:
    """The directions that each PaRa may have taken: all, or with a rank boundary those that are gone."""
    return {place: _within_boundary(found) for place, found in _gone(layer, modules).items()}


def _look(layer: ChangedLayer, modules: Mapping[int, LayerModule]) -> Seen:
    found = _gone(layer, modules)
    changes: dict[int, Change] = {
        place: projection(_within_boundary(found[place]), layer.base)
        if place in found
        else change_of(module, layer.base)
        for place, module in modules.items()
    }
    fit = fitted(layer, list(changes), list(changes.values()))
    strengths = dict(zip(fit.places, fit.strengths.tolist(), strict=True))
    added = [(strengths[i], changes[i]) for i, m in modules.items() if isinstance(m, AdditiveModule)]
    taken = {}
    for place, directions in found.items():
        covered = find_gone(layer, directions.Q, added) if added else directions
        gone = int(directions.gone.sum())
        refilled = int((covered.covered & ~directions.gone).sum())
        taken[place] = (gone, refilled, directions.Q.shape[1])
    cut = frozenset(place for place, directions in found.items() if _is_cut(directions))
    return Seen(layer.name, fit, taken, cut)


def _gone(layer: ChangedLayer, modules: Mapping[int, LayerModule]) -> dict[int, Directions]:
    return {
        place: find_gone(layer, energy_directions(module.directions().Q, layer.base))
        for place, module in modules.items()
        if isinstance(module, ParaModule)
    }


def _is_cut(directions: Directions) -> bool:
    others = directions.kept[~directions.gone]
    return bool(directions.gone.any() and others.size and np.all(others > _AS_IT_WAS))


def _within_boundary(directions: Directions) -> np.ndarray:
    return directions.Q[:, directions.gone] if _is_cut(directions) else directions.Q
