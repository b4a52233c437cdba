"""A LoRA's scale in its two factors, for formats that have no place for an alpha.

A power of two changes no digit as long as no number leaves the dtype's range. Small numbers do leave it: F16
loses digits below 2^-14 and everything below 2^-25. So the scale's power of two is divided between the
factors as the numbers in them allow, and the rest of the scale, between 1 and 2, goes to ``up``.
"""

from __future__ import annotations

import math

import numpy as np

_LAST_BIT = {"F8_E4M3": -9, "F8_E5M2": -16, "F16": -24, "BF16": -133, "F32": -149, "F64": -1074}
"""The exponent of the smallest number above 0."""

_LARGEST = {"F8_E4M3": 8, "F8_E5M2": 15, "F16": 15, "BF16": 127, "F32": 127, "F64": 1023}
"""The exponent of the largest power of two."""

_WINDOW = 64
_WORST = 1e100
"""The largest error that a loss tells, so that its square is finite."""


def folded(up: np.ndarray, down: np.ndarray, scale: float, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """``scale * up @ down`` as two factors in float64, which ``dtype`` then holds as exactly as it can.

    Parameters
    ----------
    up, down:
        (d, r) and (r, k), float64.
    scale:
        Any finite number; 0 makes ``up`` zero.
    """
    finite = np.isfinite(up).all() and np.isfinite(down).all()
    if scale == 0 or not (finite and up.any() and down.any()):
        return scale * up, down
    mantissa, exponent = math.frexp(scale)
    mantissa, exponent = 2 * mantissa, exponent - 1
    up = mantissa * up
    middle = exponent // 2
    shifts = sorted(range(middle - _WINDOW, middle + _WINDOW + 1), key=lambda shift: abs(shift - middle))
    of_up, of_down = _Range(up, dtype), _Range(down, dtype)
    shift = min(shifts, key=lambda shift: of_up.loss(shift) + of_down.loss(exponent - shift))
    return up * 2.0**shift, down * 2.0 ** (exponent - shift)


class _Range:
    """The loss of a factor that is multiplied by a power of two and stored as ``dtype``."""

    def __init__(self, factor: np.ndarray, dtype: str) -> None:
        size = np.abs(factor[factor != 0])
        digits, exponents = np.frexp(size)
        whole = (digits * 2.0**53).astype(np.int64)
        trailing = np.log2((whole & -whole).astype(np.float64))
        self.last_bit = int((exponents - 53 + trailing).min())
        self.largest = int(exponents.max())
        largest = float(size.max())  # of tiny numbers the squares are 0, of huge ones infinite
        self.mean = largest * float(np.sqrt(np.mean((size / largest) ** 2)))
        self.dtype = dtype

    def loss(self, shift: int) -> float:
        """The squared error that the dtype's range makes, relative to the factor; infinite beyond it."""
        if self.largest + shift > _LARGEST[self.dtype]:
            return math.inf
        smallest = _LAST_BIT[self.dtype]
        if self.last_bit + shift >= smallest:
            return 0.0
        return float(min(2.0 ** (smallest - 1 - shift) / self.mean, _WORST) ** 2)
