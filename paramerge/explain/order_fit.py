"""The fit of one layer for an order of its adapters: their strengths, found by Newton's steps.

The outcome is linear in each strength alone and has products of them (a PaRa takes a share of what a LoRA before
it added), so two or three steps from the fit of the single changes do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from paramerge.explain.layer_fit import LayerFit, fit_layer
from paramerge.explain.orders import Order
from paramerge.explain.outcome import Outcomes
from paramerge.extract.difference import ChangedLayer

_MOST_STEPS = 8
_CLOSE = 0.01
"""A step that lowers the residual by less than this share of one number's variance is the last."""


def fit_order(
    layer: ChangedLayer, outcomes: Outcomes, order: Order, places: Sequence[int], start: Mapping[int, float]
) -> LayerFit:
    """Fit the strengths of the candidates ``places``, which this layer has, from those of ``start``."""
    strengths = np.array([start[place] for place in places])
    steps_left = _MOST_STEPS
    while True:
        at = dict(zip(places, strengths.tolist(), strict=True))
        begun = outcomes.change(order, at)
        slopes = [outcomes.derivative(order, at, place) for place in places]
        fit = fit_layer(layer, places, slopes, begun)
        step = fit.strengths
        strengths = strengths + step
        steps_left -= 1
        if not steps_left or step @ fit.gram @ step <= _CLOSE * fit.variance:
            return replace(fit, strengths=strengths)
