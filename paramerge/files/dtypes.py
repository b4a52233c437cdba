"""The dtypes of safetensors, by the names that the header uses.

NumPy reads all of them with ``ml_dtypes`` (bfloat16 and the 8-bit floats); torch is not needed here.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
"""Bits an element, for every dtype of safetensors 0.8."""

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The floating dtypes that paramerge can compute on and convert between."""

NUMPY: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
"""NumPy's dtype for each name, little-endian as the format is."""


def is_float(dtype: str) -> bool:
    """Whether ``dtype`` is a floating dtype that paramerge computes on."""
    return dtype in FLOATS


def unit_roundoff(dtype: str) -> float:
    """Half the distance from 1 to the next number of ``dtype`` (one of :data:`FLOATS`)."""
    return float(ml_dtypes.finfo(NUMPY[dtype]).eps) / 2  # type: ignore[no-untyped-call]
