"""The fit of one layer for an order of its adapters: their strengths, found by Newton's steps.

The outcome is linear in each strength alone and has products of them (a PaRa takes a share of what a LoRA
before it added), so two or three steps from the fit of the single changes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from paramerge.adapters.changes import Change
from paramerge.explain.layer_fit import LayerFit
from paramerge.explain.orders import Order
from paramerge.explain.outcome import Outcomes, Sum
from paramerge.explain.swallowed import fitted
from paramerge.extract.difference import ChangedLayer

_MOST_STEPS = 8
_CLOSE = 0.01
"""A step that lowers the residual by less than this share of one number's variance is the last."""


def fit_order(
    layer: ChangedLayer,
    outcomes: Outcomes,
    order: Order,
    start: Mapping[int, float],
    others: Mapping[int, Change],
) -> LayerFit:
    """Fit the strengths of the candidates of ``order``, which this layer has, from those of ``start`` on.

    ``others`` are changes of further candidates, fitted beside them as if each had been applied alone.
    """
    ordered = [place for step in order for place in step]
    places = sorted({*ordered, *others})
    joint = np.array([any(place in step for step in order if len(step) > 1) for place in places])
    strengths = np.array([start[place] if place in ordered else 0.0 for place in places])
    for _ in range(_MOST_STEPS):
        # a joint merge knows strengths from 0 to 1 alone: it is fitted there, and goes on as its slopes do
        strengths = np.where(joint, np.clip(strengths, 0.0, 1.0), strengths)
        at = dict(zip(places, strengths.tolist(), strict=True))
        begun = Sum(((1.0, outcomes.change(order, at)), *((at[i], change) for i, change in others.items())))
        slopes = [
            others[place] if place in others else outcomes.derivative(order, at, place) for place in places
        ]
        fit = fitted(layer, places, slopes, begun)
        step = fit.strengths
        strengths = strengths + step
        if step @ fit.gram @ step <= _CLOSE * fit.variance:
            break
    return replace(fit, strengths=strengths)
