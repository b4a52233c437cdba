"""Numbers that adapters store as tensors: alphas, bounds, flags."""

from __future__ import annotations

import math

from paramerge.errors import AdapterError, NonFiniteError, ShapeError
from paramerge.files.dtypes import NUMPY
from paramerge.files.tensors import StoredTensor


def is_single(tensor: StoredTensor) -> bool:
    """Whether it is one number, whatever its axes."""
    return math.prod(tensor.shape) == 1


def is_real(tensor: StoredTensor) -> bool:
    """Whether its dtype is one of real numbers that can be read."""
    dtype = NUMPY.get(tensor.dtype)
    return dtype is not None and dtype.kind not in "bc"


def read_number(tensor: StoredTensor, role: str, *, positive: bool = False) -> float:
    """The one finite number of a tensor, whole or real; an alpha of 0 switches its layer off.

    Parameters
    ----------
    role:
        What it is, for errors: ``alpha``.
    positive:
        Whether it is a bound or a flag: 0 or above.

    Raises
    ------
    ShapeError
        Not exactly one number.
    AdapterError
        A dtype that holds no real numbers, or a bound below 0.
    NonFiniteError
        NaN or infinite.
    """
    where = f"{tensor.path}: {tensor.key}"
    if not is_single(tensor):
        raise ShapeError(
            f"an {role} is not a single number", where=where, expected="shape []", found=list(tensor.shape)
        )
    if not is_real(tensor):
        raise AdapterError(
            f"an {role} is not stored as a real number",
            where=where,
            expected="F32, F16, BF16, I64 or another dtype of real numbers",
            found=tensor.dtype,
        )
    value = float(tensor.read().reshape(()).astype("float64"))
    if not math.isfinite(value):
        raise NonFiniteError(f"an {role} is not finite", where=where, found=value)
    if value < 0 and positive:
        raise AdapterError(
            f"an {role} that bounds a norm is below 0", where=where, expected="0 or above", found=value
        )
    return value
