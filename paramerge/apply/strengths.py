"""The limits of an adapter's strength, for every verb that takes one."""

from __future__ import annotations

import math

from paramerge.errors import UsageError

USUAL_STRENGTH = 4.0
"""Beyond it, either way, a strength is warned of."""

LARGEST_STRENGTH = 100.0
"""Beyond it, either way, a strength is refused: it was mistyped."""


def check_strength(value: float, where: object, name: str = "strength") -> None:
    """Refuse a strength, scale or weight that is not finite, or too large to be meant.

    Raises
    ------
    UsageError
    """
    if not math.isfinite(value):
        raise UsageError(f"the {name} is not a finite number", where=where, found=value)
    if abs(value) > LARGEST_STRENGTH:
        raise UsageError(
            f"the {name} is too large",
            where=where,
            expected=f"at most {LARGEST_STRENGTH:g}, and usually about 1",
            found=f"{value:g}",
            hint="a percentage is written as a share: 80 percent is 0.8",
        )
