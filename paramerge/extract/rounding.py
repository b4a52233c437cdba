"""Whether two stored values may be one number, rounded to two dtypes.

A model that was saved in fp16 differs from its fp32 original in nearly every element, and nothing was done to
it. Two values can come from one number where the intervals that round to each of them meet: where they are no
farther apart than half a step of each dtype together. In one dtype a number has one value, so there equality
decides.
"""

from __future__ import annotations

import numpy as np

from paramerge.files.dtypes import unit_roundoff

_LEAST_EXPONENT = {"F64": -1022, "F32": -126, "BF16": -126, "F16": -14, "F8_E4M3": -6, "F8_E5M2": -14}
"""Exponent of the smallest normal number: below it the steps stay as they are."""

_EXPONENT = np.int64(0x7FF0_0000_0000_0000)
"""The bits of a float64's exponent."""


def only_rounded(one: np.ndarray, other: np.ndarray, dtype: str, other_dtype: str) -> bool:
    """Whether rounding alone explains how ``one`` (float64, stored as ``dtype``) and ``other`` differ."""
    if dtype == other_dtype:
        return np.array_equal(one, other)
    allowed = half_step(one, dtype) + half_step(other, other_dtype)
    return bool(np.all(np.abs(one - other) <= allowed))


def coarser(dtype: str, other: str) -> str:
    """The dtype of the two that rounds more."""
    return max(dtype, other, key=unit_roundoff)


def half_step(values: np.ndarray, dtype: str) -> np.ndarray:
    """The largest distance of a number that rounds to each of ``values`` (float64, of ``dtype``)."""
    powers = (values.view(np.int64) & _EXPONENT).view(np.float64)  # 2^e of each number, 0 of 0
    np.maximum(powers, 2.0 ** _LEAST_EXPONENT[dtype], out=powers)
    powers *= unit_roundoff(dtype)
    return powers
