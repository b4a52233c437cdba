"""PaRa's directions, one by one: the ones that are gone from a checkpoint, ``q^T W' = 0`` up to rounding.

A direction is a left singular vector of ``Q Q^T W``: the span that the PaRa may take, in the order of the
energy that W has there, which is that of a rank boundary, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from paramerge.adapters.changes import Change
from paramerge.explain.layer_fit import step_variances
from paramerge.extract.difference import ChangedLayer

_CHANCE = 6.0
"""Standard deviations of a direction's energy by rounding within which it is gone."""
_ROWS = 256


@dataclass(frozen=True)
class Directions:
    """The directions of one PaRa at one layer.

    Attributes
    ----------
    Q:
        (d, r) float64 orthonormal, by falling energy.
    gone:
        Whether W' has nothing there but rounding, (r,).
    covered:
        Whether it has nothing there but rounding and what other adapters add, (r,).
    kept:
        ``||q^T W'|| / ||q^T W||``, (r,).
    """

    Q: np.ndarray
    gone: np.ndarray
    covered: np.ndarray
    kept: np.ndarray

    @property
    def taken(self) -> np.ndarray:
        """The directions that the PaRa took, whether or not another adapter wrote there since, (r,)."""
        return np.asarray(self.gone | self.covered)


def energy_directions(Q: np.ndarray, W: np.ndarray) -> np.ndarray:
    """The directions of the span of ``Q`` (d, r) by falling energy of ``W`` (d, k); without energy, none."""
    U, s, _ = np.linalg.svd(Q.T @ W, full_matrices=False)
    return np.asarray(Q @ U[:, s > s[:1] * np.sqrt(np.finfo(np.float64).eps)])


def find_gone(layer: ChangedLayer, Q: np.ndarray, added: Iterable[tuple[float, Change]] = ()) -> Directions:
    """Test each direction of ``Q`` (d, r), with and without the changes that others ``added``."""
    seen = Q.T @ layer.tuned
    beneath = seen.copy()
    for strength, change in added:
        for start, block in change.blocks():
            beneath -= strength * (Q[start : start + len(block)].T @ block)
    expected = (Q * Q).T @ _row_variances(layer)
    limits = expected * (1 + _CHANCE * np.sqrt(2 / seen.shape[1]))
    before = np.linalg.norm(Q.T @ layer.base, axis=1)
    after = np.linalg.norm(seen, axis=1)
    kept = after / np.where(before > 0, before, 1.0)
    return Directions(Q, after**2 <= limits, np.sum(beneath**2, axis=1) <= limits, kept)


def _row_variances(layer: ChangedLayer) -> np.ndarray:
    """The variance of rounding, summed over each row of W', (d,)."""
    rows = len(layer.tuned)
    found = [
        step_variances(layer.tuned[start : start + _ROWS], layer.tuned_dtype).sum(axis=1)
        for start in range(0, rows, _ROWS)
    ]
    return np.concatenate(found)
