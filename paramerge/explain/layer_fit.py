"""Least squares on one layer: the strengths at which the candidates' changes add up to the layer's.

With ``D = W' - W`` of the two checkpoints and the change ``X_i`` of each candidate at strength 1, the model
is ``D = sum s_i X_i + E``, E the rounding of W' to its dtype. E's numbers are taken as independent, each
uniform within half a step of its own: variance ``q^2 / 12`` for a step q. So the normal equations
``G s = X^T D``, with ``G = X^T X``, have a right side with the covariance ``X^T diag(q^2 / 12) X``, which is
summed up as it is.

Where changes are no larger than steps, rounding is no such noise: see :mod:`paramerge.explain.swallowed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import ml_dtypes
import numpy as np

from paramerge.adapters.changes import Change
from paramerge.extract.difference import ChangedLayer
from paramerge.extract.rounding import half_step
from paramerge.files.dtypes import NUMPY

_BLOCK_ELEMENTS = 1 << 19
NEARLY_DEPENDENT = 1e-10
"""Eigenvalues of the normal equations, of columns of length 1, up to which columns are one."""
_CANCELLED = 1e-8
"""A residual is summed up by itself where it is so small a part of what was there."""
_ARITHMETIC = 16.0
"""Roundings of float64 in a result that is stored as float64."""


@dataclass(frozen=True)
class LayerFit:
    """The least squares of one layer, for the n candidates that have it.

    Attributes
    ----------
    places:
        The candidates.
    gram:
        ``X^T X``, (n, n) float64.
    strengths:
        The solution on this layer alone, (n,); of many, the smallest.
    spread:
        Covariance of ``X^T E`` by rounding, (n, n).
    change:
        ``||D||^2``.
    residual:
        The squared Frobenius norm that the solution leaves.
    noise:
        The one that rounding is expected to have.
    elements:
        Numbers in the layer.
    """

    places: tuple[int, ...]
    gram: np.ndarray
    strengths: np.ndarray
    spread: np.ndarray
    change: float
    residual: float
    noise: float
    elements: int

    def residual_at(self, strengths: np.ndarray) -> float:
        """The squared norm that is left at other strengths, (n,)."""
        off = strengths - self.strengths
        return self.residual + float(off @ self.gram @ off)

    @property
    def variance(self) -> float:
        """Variance of a number in the residual: that of rounding, or of what is there, where it is more."""
        free = max(self.elements - len(self.places), 1)
        expected, found = self.noise / self.elements, self.residual / free
        return found if found > expected * (1 + 5 * np.sqrt(2 / free)) else expected

    def without(self, kept: Sequence[int]) -> LayerFit:
        """The fit of some of the candidates alone."""
        at = [index for index, place in enumerate(self.places) if place in kept]
        gram, seen = self.gram[np.ix_(at, at)], (self.gram @ self.strengths)[at]
        solution = solved(gram, seen)
        whole = np.zeros(len(self.places))
        whole[at] = solution
        places = tuple(self.places[index] for index in at)
        spread = self.spread[np.ix_(at, at)]
        return replace(
            self, places=places, gram=gram, strengths=solution, spread=spread,
            residual=self.residual_at(whole),
        )  # fmt: skip


class Rest(Protocol):
    """A matrix that is to be explained, by rows."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``, float64."""


@dataclass(frozen=True)
class Unexplained:
    """``W' - (W + sum s_i X_i)``, or with ``rounded`` ``W' - round(W + sum s_i X_i)``."""

    layer: ChangedLayer
    changes: Sequence[Change] = ()
    strengths: Sequence[float] = ()
    rounded: bool = False

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``, float64."""
        predicted = self.layer.base[start:stop]
        for change, strength in zip(self.changes, self.strengths, strict=True):
            predicted = predicted + strength * change.rows(start, stop)
        if self.rounded:
            predicted = rounded(predicted, self.layer.tuned_dtype)
        return np.asarray(self.layer.tuned[start:stop] - predicted)

    def less(self, changes: Sequence[Change], strengths: np.ndarray, *, rounded: bool = False) -> Unexplained:
        """The rest without further ``changes``, or without their rounded sum with the weight."""
        every = [*self.changes, *changes]
        return Unexplained(self.layer, every, [*self.strengths, *strengths.tolist()], rounded)


@dataclass(frozen=True)
class Sums:
    """``X^T X``, ``X^T R``, ``X^T diag(q^2 / 12) X``, ``||R||^2`` and the sum of ``q^2 / 12``."""

    gram: np.ndarray
    seen: np.ndarray
    spread: np.ndarray
    squared: float
    noise: float


def fit_layer(
    layer: ChangedLayer, places: Sequence[int], changes: Sequence[Change], begun: Change | None = None
) -> LayerFit:
    """Fit the ``changes`` of the candidates ``places`` to a layer, each (d, k) as the layer is.

    With ``begun`` they are fitted to what it leaves; their strengths are further ones then.
    """
    first = Unexplained(layer) if begun is None else Unexplained(layer, [begun], [1.0])
    sums = sums_over(layer, changes, first)
    strengths = solved(sums.gram, sums.seen)
    residual = sums.squared - float(sums.seen @ strengths)
    if residual <= _CANCELLED * sums.squared:
        residual = squared_norm(layer, first.less(changes, strengths))
    change = sums.squared if begun is None else squared_norm(layer, Unexplained(layer))
    fit = LayerFit(
        tuple(places), sums.gram, strengths, sums.spread, change, residual, sums.noise, layer.tuned.size
    )
    return fit


def sums_over(layer: ChangedLayer, changes: Sequence[Change], rest: Rest) -> Sums:
    """Sum up the normal equations for ``rest``, by blocks of rows."""
    n = len(changes)
    gram, seen, spread = np.zeros((n, n)), np.zeros(n), np.zeros((n, n))
    squared = noise = 0.0
    for start, stop in runs_of(layer, n + 3):
        block = rest.rows(start, stop).ravel()
        variances = step_variances(layer.tuned[start:stop], layer.tuned_dtype).ravel()
        squared += float(block @ block)
        noise += float(np.sum(variances))
        if n:
            X = np.stack([change.rows(start, stop).ravel() for change in changes])
            gram += X @ X.T
            seen += X @ block
            spread += (X * variances) @ X.T
    return Sums(gram, seen, spread, squared, noise)


def squared_norm(layer: ChangedLayer, rest: Rest) -> float:
    """``||R||^2``, by blocks of rows."""
    blocks = (rest.rows(start, stop).ravel() for start, stop in runs_of(layer, 4))
    return float(sum(float(block @ block) for block in blocks))


def step_variances(values: np.ndarray, dtype: str) -> np.ndarray:
    """The variance of rounding to each of ``values``, float64: ``q^2 / 12`` for a step q."""
    steps = half_step(np.ascontiguousarray(values), dtype)
    if dtype == "F64":
        steps *= _ARITHMETIC
    steps *= steps
    steps /= 3
    return steps


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """``values`` in ``dtype`` and back, those beyond its range at its end."""
    largest = float(ml_dtypes.finfo(NUMPY[dtype]).max)  # type: ignore[no-untyped-call]
    return np.asarray(np.clip(values, -largest, largest).astype(NUMPY[dtype]).astype(np.float64))


def solved(gram: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The smallest solution of normal equations, whatever the lengths of their columns."""
    return np.asarray(inverse(gram) @ seen)


def inverse(gram: np.ndarray) -> np.ndarray:
    """The pseudoinverse of ``X^T X``, (n, n); columns that are nearly dependent count as dependent."""
    lengths = np.sqrt(np.diagonal(gram))
    lengths = np.where(lengths > 0, lengths, 1.0)
    unit = gram / np.outer(lengths, lengths)
    return np.asarray(
        np.linalg.pinv(unit, rcond=NEARLY_DEPENDENT, hermitian=True) / np.outer(lengths, lengths)
    )


def runs_of(layer: ChangedLayer, matrices: int) -> Iterator[tuple[int, int]]:
    """Runs of rows of which so many ``matrices`` at once stay in a core's cache."""
    rows, columns = layer.tuned.shape
    step = max(1, _BLOCK_ELEMENTS // max(1, columns * matrices))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))
