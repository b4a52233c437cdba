"""Verdicts: whether each candidate is in the checkpoint, from strengths and their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paramerge.explain.findings import Verdict
from paramerge.explain.layer_fit import LayerFit
from paramerge.explain.strengths import BAR, CERTAIN, Strengths, combined

_ALIKE = 0.9
"""Correlation of two strengths' errors from which on one may stand for the other."""


@dataclass(frozen=True)
class Judged:
    """A verdict, and the candidates that this one cannot be told apart from."""

    verdict: Verdict
    like: tuple[int, ...] = ()


def judge(fits: Sequence[LayerFit], strengths: Strengths) -> dict[int, Judged]:
    """The verdict on every candidate.

    One is there where 0 is more than :data:`CERTAIN` standard errors away. One that is not may be hidden by
    another whose change is nearly its own: that is so where its bar holds both 0 and the strength that it
    would have without the other.
    """
    found: dict[int, Judged] = {}
    for index, place in enumerate(strengths.places):
        value, error = float(strengths.values[index]), float(strengths.errors[index])
        blurred = [group for group in strengths.blurred if place in group]
        if blurred:
            like = tuple(sorted(frozenset().union(*blurred) - {place}))
            together = any(_is_certain(combined(fits, (set(strengths.places) - set(like)) | {one}), one)
                           for one in (place, *like))  # fmt: skip
            found[place] = Judged("unclear", like) if together else Judged("absent")
        elif _is_certain(strengths, place):
            scattered = place in strengths.uneven and abs(value) < error * math.sqrt(_layers(fits, place))
            found[place] = Judged("unclear" if scattered else "there")
        else:
            hiding = [
                other for other in _correlated(strengths, index) if _hides(fits, strengths, place, other)
            ]
            found[place] = Judged("unclear", tuple(hiding)) if hiding else Judged("absent")
    return found


def _is_certain(strengths: Strengths, place: int) -> bool:
    index = strengths.places.index(place)
    return bool(abs(strengths.values[index]) > CERTAIN * strengths.errors[index])


def _layers(fits: Sequence[LayerFit], place: int) -> int:
    return sum(place in fit.places for fit in fits)


def _correlated(strengths: Strengths, index: int) -> list[int]:
    """Candidates whose errors go with this one's."""
    errors = np.sqrt(np.maximum(np.diagonal(strengths.covariance), 1e-300))
    correlation = strengths.covariance[index] / (errors * errors[index])
    return [
        place
        for other, place in enumerate(strengths.places)
        if other != index and abs(correlation[other]) > _ALIKE
    ]


def _hides(fits: Sequence[LayerFit], strengths: Strengths, place: int, other: int) -> bool:
    """Whether all that is taken for ``other`` may be this candidate, which then would be there."""
    alone = combined(fits, set(strengths.places) - {other})
    if not _is_certain(alone, place):
        return False
    index = strengths.places.index(place)
    off = abs(alone.values[alone.places.index(place)] - strengths.values[index])
    return bool(off <= BAR * strengths.errors[index])
