"""The magnitude that so many elements of a tensor have at least, found by passes over blocks of it.

A sample of the elements brackets it; one more pass counts what lies above the bracket and keeps what lies
within, among which it is then looked up. The answer is exact: where the sample misled, the bracket is
everything.
"""

from __future__ import annotations

import math

import numpy as np

_SAMPLES = 1 << 14
_DEVIATIONS = 6
"""Standard deviations of a sample's share by which the bracket is wider."""


class Sampled:
    """Elements of one tensor, evenly spaced within blocks of it."""

    def __init__(self, size: int) -> None:
        self._step = max(1, size // _SAMPLES)
        self._found: list[np.ndarray] = []

    def look(self, magnitudes: np.ndarray) -> None:
        """Take from a flat block, or a part of one."""
        self._found.append(magnitudes[:: self._step].copy())

    def bracket(self, count: int, size: int) -> tuple[float, float]:
        """Two numbers between which, in all likelihood, the ``count`` largest begin."""
        sample = np.sort(np.concatenate(self._found))[::-1]
        share = count / size
        slack = _DEVIATIONS * math.sqrt(share * (1 - share) * len(sample)) + 2
        high, low = math.floor(share * len(sample) - slack), math.ceil(share * len(sample) + slack)
        return (
            float(sample[low]) if low < len(sample) else -1.0,
            float(sample[high]) if high >= 0 else math.inf,
        )


class Cut:
    """The magnitude of the ``count``-th largest of ``size`` elements; inf for 0, and 0 for all."""

    def __init__(self, count: int, size: int, bracket: tuple[float, float]) -> None:
        self._count = count
        self._known = math.inf if count <= 0 else 0.0 if count >= size else None
        self._low, self._high = bracket
        self._above = self._low_ones = 0
        self._within: list[np.ndarray] = []

    def look(self, magnitudes: np.ndarray) -> None:
        """See a block, in any order."""
        if self._known is not None:
            return
        above_low, above_high = magnitudes > self._low, magnitudes > self._high
        self._above += int(np.count_nonzero(above_high))
        self._low_ones += int(np.count_nonzero(magnitudes == self._low))
        self._within.append(magnitudes[np.flatnonzero(above_low ^ above_high)])

    def value(self) -> float | None:
        """The magnitude; None where the bracket missed it."""
        if self._known is not None:
            return self._known
        within = np.concatenate(self._within)
        place = self._count - self._above  # among those within, from the largest
        if 0 < place <= len(within):
            return float(np.partition(within, len(within) - place)[len(within) - place])
        return self._low if 0 < place <= len(within) + self._low_ones else None


EVERYTHING = (-1.0, math.inf)
"""The bracket that misses nothing."""
