"""Differences of two tensors, block by block: how many elements, how far, and whether it is rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paramerge.files.dtypes import BITS, NUMPY, is_float
from paramerge.verify.verdict import TensorDifference

_Array = NDArray[Any]


@dataclass(frozen=True)
class Sums:
    """The arithmetic behind a tensor, for the bound on its rounding: ``n`` numbers summed up with ``eps``."""

    n: int
    eps: float


class Difference:
    """Differences of the bytes found from those made of one tensor, added up over its blocks in their order.

    Two computations of one number are each within half a step of the output's dtype of it, and an error of
    the arithmetic (docs/architecture.md): together a whole step of the larger one, and ``2 n eps`` of what
    was summed up, for which the tensor's largest number stands.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._elements = self._units = 0
        self._squares = self._norm = self._largest = self._excess = 0.0
        self._is_finite = True

    def add_same(self, data: memoryview) -> None:
        """Add bytes that are those made."""
        if is_float(self._dtype):
            self._add_size(_values(data, self._dtype))

    def add(self, found: memoryview, made: memoryview) -> None:
        """Add bytes that differ somewhere from those made."""
        if not is_float(self._dtype):
            size = max(1, BITS[self._dtype] // 8)
            pairs = [np.frombuffer(data, np.uint8).reshape(-1, size) for data in (found, made)]
            self._elements += int((pairs[0] != pairs[1]).any(axis=1).sum())
            return
        bits = [np.frombuffer(data, f"u{BITS[self._dtype] // 8}") for data in (found, made)]
        places = np.flatnonzero(bits[0] != bits[1])
        self._elements += len(places)
        ours, theirs = _values(made, self._dtype), _values(found, self._dtype)[places]
        self._add_size(ours)
        ours = ours[places]
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            self._is_finite = False
            return
        away = np.abs(ours - theirs)
        self._squares += float(np.dot(away, away))
        self._units = max(self._units, _units(bits[0][places], bits[1][places]))
        step = _step(np.maximum(np.abs(ours), np.abs(theirs)), self._dtype)
        self._excess = max(self._excess, float((away - step).max(initial=0.0)))

    def result(self, file: str, key: str, of: int, sums: Sums) -> TensorDifference:
        """The difference of the tensor, of ``of`` elements, whose values are sums of this kind."""
        if not is_float(self._dtype):
            return TensorDifference(file, key, self._dtype, self._elements, of, None, None, False)
        error = math.sqrt(self._squares / self._norm) if self._norm else math.inf if self._squares else 0.0
        return TensorDifference(
            file,
            key,
            self._dtype,
            self._elements,
            of,
            error if self._is_finite else math.inf,
            self._units if self._is_finite else None,
            self._is_finite and self._excess <= 2 * sums.n * sums.eps * self._largest,
        )

    def _add_size(self, values: _Array) -> None:
        finite = values[np.isfinite(values)]
        self._norm += float(np.dot(finite, finite))
        self._largest = max(self._largest, float(np.abs(finite).max(initial=0.0)))


def _values(data: memoryview, dtype: str) -> _Array:
    return np.frombuffer(data, NUMPY[dtype]).astype(np.float64)


def _units(a: _Array, b: _Array) -> int:
    """The largest distance of two numbers, given by their bits, in numbers of their dtype between them."""
    if not len(a):
        return 0
    width = a.dtype.itemsize * 8
    sign = np.uint64(1 << (width - 1))
    wide = [bits.astype(np.uint64) for bits in (a, b)]
    sizes = [bits & ~sign for bits in wide]
    below, above = np.minimum(*sizes), np.maximum(*sizes)
    opposite = (wide[0] ^ wide[1]) & sign != 0
    return int(np.where(opposite, below + above, above - below).max())


def _step(sizes: _Array, dtype: str) -> _Array:
    """The distance from each number to the next larger one of ``dtype``."""
    info = ml_dtypes.finfo(NUMPY[dtype])  # type: ignore[no-untyped-call]
    exponents = np.frexp(sizes)[1] - 1
    steps: _Array = np.ldexp(1.0, np.maximum(exponents, int(info.minexp)) - int(info.nmant))
    return steps
