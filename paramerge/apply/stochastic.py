"""Stochastic rounding: to one of the two neighbours, the nearer the likelier, so that the mean is kept.

The random bits come from Philox, a generator that is addressed by a counter, under a key made of the tensor's
name: element ``i`` of a tensor always has word ``i``, however the tensor is cut into blocks and whichever
thread has them. NumPy keeps that stream the same from version to version.
"""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from paramerge.apply.rounding import Rounder
from paramerge.files.dtypes import NUMPY

_WORDS = 8
"""Words of 32 bits that Philox makes of one counter."""

_PIECE = 1 << 15
"""Elements at once: what is worked out on the way stays in a core's cache."""

_MANTISSA = 52
"""Bits of float64's mantissa that are stored."""

_SIGN = np.int64(np.iinfo(np.int64).min)


class RandomWords:
    """The 32 random bits of each element of one tensor. For one thread.

    Parameters
    ----------
    name:
        The name of the tensor: other names have other bits.
    seed:
        The user's; other seeds have other bits, too.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        text = f"paramerge stochastic rounding\0{seed}\0{name}".encode(errors="surrogateescape")
        self._philox = np.random.Philox(key=int.from_bytes(hashlib.sha256(text).digest()[:16], "little"))
        self._state = self._philox.state

    def of(self, first: int, count: int) -> NDArray[np.uint32]:
        """The words of elements ``first`` to ``first + count``."""
        counter, skipped = divmod(first, _WORDS)
        self._state["state"]["counter"][0] = counter
        self._philox.state = self._state
        raw = self._philox.random_raw((skipped + count + 1) // 2)
        return raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]

    def halves(self, first: int, count: int) -> NDArray[np.uint16]:
        """16 bits for each of elements ``first`` to ``first + count``, the halves of words."""
        word, skipped = divmod(first, 2)
        return self.of(word, (skipped + count + 1) // 2).view("<u2")[skipped : skipped + count]


class StochasticRounder:
    """Rounds the blocks of one tensor stochastically. For one thread.

    The mean of a value's roundings is the value, to 2^-32 of the distance of its neighbours. Numbers of the
    output's dtype stay as they are, and so do the signs of zeros; beyond the largest number of the dtype, and
    for NaN and Inf, the outcome is that of rounding to nearest.

    Parameters
    ----------
    name, seed:
        See :class:`RandomWords`.
    dtype:
        The output's, as safetensors names it (one of :data:`paramerge.files.dtypes.FLOATS`).
    """

    def __init__(self, name: str, dtype: str, seed: int = 0) -> None:
        self._words = RandomWords(name, seed)
        self._dtype = dtype
        self._nearest = Rounder()

    def put(self, values: torch.Tensor, target: torch.Tensor, first: int) -> None:
        """Round ``values`` (float32 or float64, contiguous) into ``target``, of the same shape.

        ``first`` is the index, in the flattened tensor, of the first of them.
        """
        if target.dtype in (torch.float64, values.dtype):
            target.copy_(values)
            return
        flat, out = values.view(-1), target.view(-1)
        for start in range(0, len(flat), _PIECE):
            self._put_piece(flat[start : start + _PIECE], out[start : start + _PIECE], first + start)

    def _put_piece(self, values: torch.Tensor, target: torch.Tensor, first: int) -> None:
        exact = values.to(torch.float64)
        found = to_neighbours(exact.numpy(), self._dtype, self._words.of(first, len(values)))
        result = torch.from_numpy(found)
        limit = torch.finfo(target.dtype).max
        lowest, highest = torch.aminmax(exact)
        if bool(lowest >= -limit) and bool(highest <= limit):
            target.copy_(result)  # exact: these are numbers of the dtype
            return
        self._nearest.put(values, target)
        inside = exact.abs() <= limit
        target.copy_(torch.where(inside, result, target.to(torch.float64)))


def to_neighbours(values: NDArray[np.float64], dtype: str, words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Each value rounded down or up to a number of ``dtype`` (one of F32, F16, BF16 and the 8-bit floats).

    The chance of the neighbour that is farther from 0 is the share of the way to it.

    Parameters
    ----------
    values:
        (n,) float64, finite and within the range of ``dtype``.
    dtype:
        As safetensors names it.
    words:
        (n,) random bits.

    Returns
    -------
    numpy.ndarray
        (n,) float64, each a number of ``dtype``.
    """
    info = ml_dtypes.finfo(NUMPY[dtype])  # type: ignore[no-untyped-call]
    dropped = _MANTISSA - int(info.nmant)
    smallest = float(info.smallest_normal)
    bits = values.view(np.int64)
    sign = bits & _SIGN
    sizes = np.abs(values)
    small = sizes < smallest
    # beside the smallest normal number they are spaced as subnormal numbers are
    shift = np.multiply(small, smallest) if small.any() else None
    if shift is not None:
        sizes += shift
    below = words.astype(np.int64)
    below = below << (dropped - 32) if dropped >= 32 else below >> (32 - dropped)
    below += sizes.view(np.int64)
    below &= np.int64(-1 << dropped)
    found = below.view(np.float64)
    if shift is not None:
        found -= shift
    below |= sign
    return found
