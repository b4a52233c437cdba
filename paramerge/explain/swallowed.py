"""Changes no larger than the steps of their dtype, which rounding swallows in part.

``round(W + s X) - W`` has, of a small ``s X``, only the numbers that reach another step, and those too
large. Its least squares on X are not s but ``g(s)``, which is 0 for the smallest s and s for those whose
changes span several steps. So what is found is put back through ``g``, and errors grow by as much. Then the
strengths are improved until ``round(W + sum s_i X_i)`` itself has the same inner products as W', where that
comes nearer to W' than the sum without rounding does: other ways of rounding keep the mean, and ``g`` is not
theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from paramerge.adapters.changes import Change
from paramerge.explain.layer_fit import (
    LayerFit,
    Unexplained,
    fit_layer,
    inverse,
    rounded,
    runs_of,
    sums_over,
)
from paramerge.explain.strengths import CERTAIN
from paramerge.extract.difference import ChangedLayer

_SPANNING = 25.0
"""A change whose mean square is so many times that of the steps loses nothing."""
_MOST_REPETITIONS = 6
_DOUBLINGS = 12
_HALVINGS = 6
_LOST = 0.995
"""A part of the change that counts as all of it."""
_SEEN = 2.0
"""Standard errors of a strength that could be there unseen."""


def fitted(
    layer: ChangedLayer, places: Sequence[int], changes: Sequence[Change], begun: Change | None = None
) -> LayerFit:
    """The fit of a layer, as :func:`fit_layer`; where rounding swallows changes, with what it swallowed."""
    fit = fit_layer(layer, places, changes, begun)
    swallowed = fit.change < _SPANNING * 12 * fit.noise
    return _with_losses(layer, changes, fit, begun) if swallowed and places else fit


def _with_losses(
    layer: ChangedLayer, changes: Sequence[Change], fit: LayerFit, begun: Change | None
) -> LayerFit:
    first = Unexplained(layer) if begun is None else Unexplained(layer, [begun], [1.0])
    inverted = inverse(fit.gram)
    errors = np.sqrt(np.diagonal(inverted @ fit.spread @ inverted))
    sizes = np.diagonal(fit.gram)
    kept = np.ones(len(changes))
    around = first  # what is there besides: the clearest first, for the others are rounded along with it
    for index in np.argsort(-np.abs(fit.strengths) / np.where(errors > 0, errors, 1.0)):
        found = max(abs(float(fit.strengths[index])), _SEEN * float(errors[index]))
        if found and sizes[index] and found**2 * sizes[index] < _SPANNING * 12 * fit.noise:
            kept[index] = _kept(layer, around, changes[index], float(sizes[index]), found)
        if abs(fit.strengths[index]) > CERTAIN * errors[index]:
            around = around.less([changes[index]], fit.strengths[[index]] / kept[index])
    fit = replace(fit, spread=fit.spread / np.outer(kept, kept))
    best = fit
    strengths = fit.strengths if begun is not None else fit.strengths / kept
    for _ in range(_MOST_REPETITIONS):
        sums = sums_over(layer, changes, first.less(changes, strengths, rounded=True))
        if sums.squared >= best.residual:
            break
        best = replace(fit, strengths=strengths, residual=sums.squared)
        strengths = strengths + inverted @ sums.seen / kept
    return best


def _kept(layer: ChangedLayer, around: Unexplained, change: Change, size: float, found: float) -> float:
    """``g(s) / s`` at the s for which ``g(s)`` is ``found``; g rises with s."""
    low, high = 0.0, found
    for _ in range(_DOUBLINGS):
        if _arriving(layer, around, change, high) / size >= _LOST * found:
            break
        low, high = high, 2 * high
    if low:
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            enough = _arriving(layer, around, change, middle) / size >= found
            low, high = (low, middle) if enough else (middle, high)
    return found / high


def _arriving(layer: ChangedLayer, around: Unexplained, change: Change, strength: float) -> float:
    """``<X, round(W + s X) - round(W)>``, W with all that is ``around``."""
    total = 0.0
    for start, stop in runs_of(layer, 4):
        X, W = change.rows(start, stop), layer.tuned[start:stop] - around.rows(start, stop)
        before, after = (rounded(values, layer.tuned_dtype) for values in (W, W + strength * X))
        total += float(np.sum(X * (after - before)))
    return total
