"""Strengths over all layers: the layers' least squares, each weighted by the accuracy of its numbers.

``H s = b`` with ``H = sum G / v`` and ``b = sum X^T D / v`` over the layers, v the variance of a layer's
residual. The covariance of s is ``H^-1 (sum spread / v^2) H^-1``. Where the strengths of single layers differ
by more than that says, as with block weights, or next to something unknown, the errors are those of the
scatter between layers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from paramerge.explain.layer_fit import NEARLY_DEPENDENT, LayerFit, inverse

CERTAIN = 5.0
"""Standard errors from 0 beyond which an adapter is there: by chance one in two million is."""
BAR = 1.96
"""Standard errors of an error bar: 95 percent of them hold the true strength."""
_PART = 0.05
"""The least part that a candidate has in a dependence of several."""


@dataclass(frozen=True)
class Strengths:
    """The strengths of n candidates over all layers.

    Attributes
    ----------
    places:
        The candidates.
    values, errors:
        Strengths and standard errors, (n,); of candidates that no changed layer has, 0 and infinity.
    covariance:
        (n, n), with the scatter between layers in it.
    uneven:
        The candidates whose strengths differ from layer to layer by more than their rounding.
    blurred:
        Candidates whose changes add up to nothing at some strengths: they cannot be told apart.
    """

    places: tuple[int, ...]
    values: np.ndarray
    errors: np.ndarray
    covariance: np.ndarray
    uneven: frozenset[int]
    blurred: tuple[frozenset[int], ...] = ()

    def at(self, fit: LayerFit) -> np.ndarray:
        """The strengths of the candidates of one layer, in its order."""
        return np.asarray([self.values[self.places.index(place)] for place in fit.places])


def combined(fits: Sequence[LayerFit], places: Collection[int]) -> Strengths:
    """Combine the layers' fits for the candidates ``places``; others that a fit has are left out."""
    order = tuple(sorted(places))
    at = {place: index for index, place in enumerate(order)}
    own = [fit if set(fit.places) <= at.keys() else fit.without(order) for fit in fits]
    own = [fit for fit in own if fit.places]
    n = len(order)
    H, b, meat = np.zeros((n, n)), np.zeros(n), np.zeros((n, n))
    for fit in own:
        where = np.ix_([at[p] for p in fit.places], [at[p] for p in fit.places])
        variance = fit.variance
        H[where] += fit.gram / variance
        b[where[1][0]] += fit.gram @ fit.strengths / variance
        # rounding is as its steps say; where there is more, all of it is as large as it is found
        meat[where] += fit.spread * (variance * fit.elements / fit.noise) / variance**2
    inverted = inverse(H)
    values = inverted @ b
    covariance = inverted @ meat @ inverted
    covariance, uneven = _with_scatter(own, at, inverted, values, covariance)
    met = np.diagonal(H) > 0
    errors = np.where(met, np.sqrt(np.maximum(np.diagonal(covariance), 0)), np.inf)
    blurred = tuple(frozenset(order[index] for index in group) for group in _dependent(H))
    return Strengths(order, values, errors, covariance, frozenset(order[index] for index in uneven), blurred)


def _dependent(H: np.ndarray) -> list[list[int]]:
    """Groups of columns that are linearly dependent, up to what pseudoinverses take for it."""
    lengths = np.sqrt(np.diagonal(H))
    lengths = np.where(lengths > 0, lengths, np.inf)
    unit = H / np.outer(lengths, lengths)
    values, vectors = np.linalg.eigh(unit)
    flat = values < NEARLY_DEPENDENT * max(values[-1:], default=0.0)
    null = vectors[:, flat] @ vectors[:, flat].T  # the projector on all dependences
    met = np.isfinite(lengths)
    linked = (np.abs(null) > _PART) & met & met[:, None]
    groups: list[list[int]] = []
    for index in range(len(H)):
        group = np.flatnonzero(linked[index]).tolist()
        if len(group) > 1 and group not in groups:
            groups.append(group)
    return groups


def _with_scatter(
    fits: Sequence[LayerFit],
    at: dict[int, int],
    inverted: np.ndarray,
    values: np.ndarray,
    covariance: np.ndarray,
) -> tuple[np.ndarray, list[int]]:
    """The covariance, stretched where layers differ by more than it allows for, and for which candidates."""
    n = len(values)
    scatter, layers = np.zeros((n, n)), np.zeros(n)
    for fit in fits:
        own = [at[place] for place in fit.places]
        pull = np.zeros(n)
        pull[own] = fit.gram @ (fit.strengths - values[own]) / fit.variance
        influence = inverted @ pull
        scatter += np.outer(influence, influence)
        layers[own] += 1
    others = np.maximum(layers - 1, 1)
    ratios = np.diagonal(scatter) * layers / others / np.maximum(np.diagonal(covariance), 1e-300)
    most = 1 + 3.1 * np.sqrt(2 / others) + 6 / others  # one in a thousand of a chi square is beyond it
    uneven = [i for i in range(n) if layers[i] > 1 and ratios[i] > most[i]]
    stretch = np.ones(n)
    stretch[uneven] = np.sqrt(ratios[uneven])
    return covariance * np.outer(stretch, stretch), uneven
