"""Checks, array library and working precision: the beginning of every function of the algebra.

The algebra is written once, against the array-API standard, and runs on NumPy arrays and on torch
tensors of any device (through ``array_api_compat``; torch itself is never imported here).

Precision: float64 inputs are worked on in float64, float32 in float32. Half-precision inputs (float16,
bfloat16; for NumPy ``ml_dtypes.bfloat16``) are widened exactly to float32 first, and so are the results:
the caller rounds back, once. Inputs of several dtypes are worked on in the widest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

import array_api_compat

from paramerge.errors import NonFiniteError, ShapeError, UsageError

__all__ = [
    "Array",
    "MatrixLike",
    "Prepared",
    "check_relative_cut",
    "check_strength",
    "column_cut",
    "detached",
    "exact",
    "number",
    "orthonormal_bound",
    "prepare",
    "prepare_matrices",
    "rounding_cut",
    "storage_tolerance",
]

UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
_STORED_ROUNDOFF = {**UNIT_ROUNDOFF, "float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3}
"""Unit roundoff, also of dtypes that are for storage alone."""
HALF_PRECISION = frozenset({"float16", "bfloat16"})


class MatrixLike(Protocol):
    """The attributes that NumPy arrays and torch tensors share."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def ndim(self) -> int:
        """Number of axes."""


Array = TypeVar("Array", bound=MatrixLike)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def exact(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Keep torch's autocast out of a function of the algebra: its working precision is that of its inputs.

    In bfloat16 a product is off by 4e-3, and an orthonormal basis is none.
    """

    @wraps(function)
    def guarded(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        torch: Any = sys.modules.get("torch")
        cast = [] if torch is None else [k for k in _AUTOCAST_DEVICES if torch.is_autocast_enabled(k)]
        with ExitStack() as stack:
            for kind in cast:
                stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*arguments, **named)

    return guarded


@dataclass(frozen=True, slots=True)
class Prepared:
    """Checked inputs in their working precision.

    ``xp`` is the array namespace, ``arrays`` the widened inputs in the order given, ``eps`` the spacing of
    the working dtype at 1, and ``roundoff`` the unit roundoff of the coarsest half-precision input
    (0 when every input was stored in its working precision).
    """

    xp: Any
    arrays: tuple[Any, ...]
    eps: float
    roundoff: float


def prepare(inputs: Mapping[str, MatrixLike], *, finite: bool = False) -> Prepared:
    """Check real floating arrays of one library and widen them to one working precision.

    ``inputs`` maps the names that errors should use to the arrays. With ``finite`` NaN and Inf are refused.

    Raises
    ------
    UsageError
        No arrays, arrays of two libraries or devices, or a dtype that is not a real floating one.
    NonFiniteError
        NaN or Inf in an input, with ``finite``.
    """
    if not inputs:
        raise UsageError("no arrays were given", expected="at least one", hint="pass at least one adapter")
    xp = _namespace(inputs)
    names = {name: _dtype_name(name, array) for name, array in inputs.items()}
    wide = "float64" if "float64" in names.values() else "float32"
    dtype = getattr(xp, wide)
    arrays = tuple(xp.astype(array, dtype, copy=False) for array in inputs.values())
    if finite:
        for name, array in zip(inputs, arrays, strict=True):
            _check_finite(xp, name, array)
    roundoff = max((UNIT_ROUNDOFF[name] for name in names.values() if name in HALF_PRECISION), default=0.0)
    return Prepared(xp, arrays, 2 * UNIT_ROUNDOFF[wide], roundoff)


def prepare_matrices(
    inputs: Mapping[str, MatrixLike], *, finite: bool = False, rowless: Collection[str] = ()
) -> Prepared:
    """Check and widen (:func:`prepare`) matrices, with at least one row if not in ``rowless``.

    Raises :class:`~paramerge.errors.ShapeError` for any other shape.
    """
    for name, array in inputs.items():
        least = 0 if name in rowless else 1
        if not hasattr(array, "shape") or len(array.shape) != 2 or array.shape[0] < least:
            raise ShapeError(
                f"{name} is not a matrix with at least one row" if least else f"{name} is not a matrix",
                where=name,
                expected=f"shape (d, n), d >= {least}",
                found=f"shape {tuple(getattr(array, 'shape', ()))}",
                hint="flatten a convolution weight with flatten_conv first",
            )
    return prepare(inputs, finite=finite)


def storage_tolerance(dtype: str, columns: int) -> float:
    """Bound how far rounding to ``dtype`` moves the singular values of unit columns.

    Rounding moves a column of norm 1 by at most the unit roundoff ``u``, so ``columns`` of them move by at
    most ``u * sqrt(columns)`` in the Frobenius norm, and no singular value moves by more than that (Weyl).
    Pass it as ``rtol`` for bases that were *stored* in ``dtype`` and widened since.

    Parameters
    ----------
    dtype:
        ``"float16"``, ``"bfloat16"``, ``"float32"``, ``"float64"``, ``"float8_e4m3fn"`` or ``"float8_e5m2"``.
    columns:
        The number of columns of the bases together.
    """
    if dtype not in _STORED_ROUNDOFF:
        raise UsageError(
            "no storage tolerance is known for this dtype",
            where="dtype",
            expected=", ".join(_STORED_ROUNDOFF),
            found=dtype,
            hint="pass the dtype that the basis was stored in",
        )
    return _STORED_ROUNDOFF[dtype] * math.sqrt(columns)


def rounding_cut(shape: Sequence[int], eps: float) -> float:
    """The relative cut below which a singular value is rounding: ``max(m, n, 16) * eps``.

    The usual ``max(m, n) * eps`` of numerical ranks, but never under 16 roundings: small matrices too come
    out of several steps that round.
    """
    return max(*shape, 16) * eps


def orthonormal_bound(shape: Sequence[int], eps: float) -> float:
    """The largest ``||Q^T Q - I||_F`` of a Q (d, r) from a QR or SVD: ``(24 + sqrt(d) / 4) sqrt(r) eps``.

    Roundings of a QR add up as a random walk: 2 to 8 times less than this was measured for d from 16 to 20480
    in float32 and float64, and 2 times less for left singular vectors of dependent factors, a product of two
    Qs. A basis that was rounded to half precision is above it, save for chance in a very long column, whose
    norm is then right all the same.
    """
    d, r = shape
    return (24 + math.sqrt(d) / 4) * math.sqrt(r) * eps


def column_cut(shape: Sequence[int], prepared: Prepared) -> float:
    """The relative cut for unit columns.

    The larger of :func:`rounding_cut` and, for inputs stored in half precision, :func:`storage_tolerance`.
    """
    return max(rounding_cut(shape, prepared.eps), prepared.roundoff * math.sqrt(shape[-1]))


def check_relative_cut(rtol: float | None) -> None:
    """Refuse a relative cut outside [0, 1)."""
    if rtol is not None and not 0.0 <= rtol < 1.0:
        raise UsageError(
            "the relative cut of a rank decision is out of range",
            where="rtol",
            expected="0 <= rtol < 1, or None for a few roundings",
            found=rtol,
            hint="leave it out, or pass storage_tolerance for bases that were stored in half precision",
        )


def check_strength(strength: float, where: str = "strength") -> None:
    """Refuse a strength that is not a finite number."""
    if not math.isfinite(strength):
        raise NonFiniteError(
            "a strength is not a finite number",
            where=where,
            expected="a number",
            found=strength,
            hint="check the arithmetic that it comes from",
        )


def detached(array: Any) -> Any:
    """The same numbers without a gradient, for decisions (ranks, signs, scales), which are not
    differentiated."""
    return array.detach() if hasattr(array, "detach") else array


def number(array: Any) -> float:
    """A 0-d array as a Python float."""
    return float(detached(array))


def _namespace(inputs: Mapping[str, MatrixLike]) -> Any:
    try:
        xp = array_api_compat.array_namespace(*inputs.values())
    except TypeError as error:
        raise UsageError(
            "the inputs are not arrays of one library",
            where=", ".join(inputs),
            expected="all NumPy arrays, or all torch tensors",
            found=", ".join(sorted({type(array).__name__ for array in inputs.values()})),
            hint="convert the inputs to one library first",
        ) from error
    devices = {str(array_api_compat.device(array)) for array in inputs.values()}
    if len(devices) > 1:
        raise UsageError(
            "the inputs are on several devices",
            where=", ".join(inputs),
            expected="one device",
            found=", ".join(sorted(devices)),
            hint="move the inputs to one device first",
        )
    return xp


def _dtype_name(name: str, array: Any) -> str:
    dtype = str(array.dtype).rpartition(".")[2]
    if dtype not in UNIT_ROUNDOFF:
        raise UsageError(
            f"{name} is not of a dtype that the algebra works on",
            where=name,
            expected=", ".join(UNIT_ROUNDOFF),
            found=dtype,
            hint="convert it to float32 or float64 first",
        )
    return dtype


def _check_finite(xp: Any, name: str, array: Any) -> None:
    bad = int(xp.count_nonzero(~xp.isfinite(detached(array))))
    if bad:
        raise NonFiniteError(
            f"{name} has values that are not finite",
            where=name,
            expected="finite numbers",
            found=f"{bad} of {math.prod(array.shape)} are NaN or Inf",
            hint="the adapter or the weight is damaged: look at where it was trained or saved",
        )
