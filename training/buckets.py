"""Sizes of pictures: one square, or several of about the same area, so that less is cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["Size", "nearest_size", "sizes_for"]

Size = tuple[int, int]
"""Height and width in pixels."""

_MOST = 2
"""The largest ratio of a size's sides."""


def sizes_for(resolution: int, step: int) -> tuple[Size, ...]:
    """For each width that is a multiple of ``step`` the tallest size whose area is at most the square's.

    The square itself is among them where ``step`` divides it; sides are up to 2 to 1.
    """
    found = set()
    for width in range(step, _MOST * resolution + 1, step):
        height = min(resolution**2 // width, _MOST * resolution) // step * step
        if height and max(width, height) <= _MOST * min(width, height):
            found |= {(height, width), (width, height)}
    return tuple(sorted(found)) or ((resolution, resolution),)


def nearest_size(size: Size, choices: Sequence[Size]) -> Size:
    """The choice whose ratio of sides is nearest to that of ``size``; of equal ones the largest."""
    ratio = math.log(size[1] / size[0])
    return min(choices, key=lambda each: (abs(math.log(each[1] / each[0]) - ratio), -each[0] * each[1]))
