"""Adapters none of whose layers changed: the strength that rounding could have swallowed whole."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from paramerge.adapters import LayerModule
from paramerge.adapters.overflow import overflowing
from paramerge.explain.candidates import change_of
from paramerge.extract.difference import Differences
from paramerge.extract.rounding import half_step
from paramerge.models.names import ModuleName

_MOST_LAYERS = 8


def largest_unseen(differences: Differences, layers: Iterable[tuple[ModuleName, LayerModule]]) -> float:
    """The largest strength at which no number of these layers changes; infinite where none is any.

    ``|s X| <= q / 2`` must hold for each number, q its step; a few layers are enough to bound s.
    """
    most = np.inf
    for name, module in list(layers)[:_MOST_LAYERS]:
        W, dtype = differences.unchanged(name)
        with overflowing():
            change = change_of(module, W)
            for start, block in change.blocks():
                halves = half_step(np.ascontiguousarray(W[start : start + len(block)]), dtype)
                moved = block != 0
                if moved.any():
                    most = min(most, float(np.min(halves[moved] / np.abs(block[moved]))))
    return float(most)
