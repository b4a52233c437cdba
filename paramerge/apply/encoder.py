"""Weights written as codes: the scales from the largest magnitudes, then the codes, rounded.

Stochastic rounding has bits addressed by the tensor's name: the same inputs give the same bytes, and the mean
of a small change is kept, of which rounding to nearest keeps a third.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from paramerge.apply.rounding import Rounder
from paramerge.apply.stochastic import RandomWords
from paramerge.files.dtypes import NUMPY
from paramerge.storage.blocked import to_blocked
from paramerge.storage.codes import GridScale, decode
from paramerge.storage.encoding import Encoding
from paramerge.storage.hadamard import hadamard
from paramerge.storage.scales import Grid, matrix_of

_LARGEST = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0, "I8": 127.0}
_FLOATS = {"F8_E4M3": (7, 3), "F8_E5M2": (15, 2)}
"""The bias of the exponent, and the bits of the mantissa."""

_PIECE = 1 << 15
"""Elements at once: what is worked out on the way stays in a core's cache."""

_TORCH = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8}


class Encoder:
    """The codes of one weight: :meth:`look` at all rows, :meth:`finish`, then :meth:`put` them. For one
    thread."""

    def __init__(self, encoding: Encoding, name: str) -> None:
        self._encoding = encoding
        rows, self._columns = matrix_of(encoding.shape)
        down, across = encoding.block
        self._across = -(-self._columns // across)
        self._sizes = np.zeros((-(-rows // down), self._across))
        self._grid = Grid(*self._sizes.shape, down, across)
        self._scale = GridScale(self._grid, np.ones(self._sizes.shape))
        self._rotation = None if encoding.group is None else torch.from_numpy(hadamard(encoding.group))
        self._words = RandomWords(name) if encoding.rounding == "stochastic" else None
        self._nearest = Rounder()

    def look(self, block: torch.Tensor, row: int) -> None:
        """See rows of the weight from ``row`` on, (rows, columns) of any dtype."""
        values = self._turned(block)
        width = self._encoding.block[1]
        if self._across == 1:
            found = torch.maximum(values.amax(1, keepdim=True), -values.amin(1, keepdim=True))
        else:
            spare = -values.shape[1] % width
            found = torch.nn.functional.pad(values, (0, spare)).unflatten(1, (-1, width)).abs().amax(2)  # type: ignore[no-untyped-call]
        places = np.arange(row, row + len(block)) // self._encoding.block[0]
        np.maximum.at(self._sizes, places, found.to(torch.float64).numpy())

    def finish(self) -> Mapping[str, bytes]:
        """Settle the scales, by which the largest magnitude becomes the largest code; bytes by key."""
        part = self._encoding.scale
        sizes = self._sizes / _LARGEST[self._encoding.dtype]
        data, values = scale_bytes(sizes, part.dtype)
        if self._encoding.blocked:
            data = to_blocked(np.frombuffer(data, np.uint8).reshape(sizes.shape)).tobytes()
        self._scale = GridScale(self._grid, values)
        return {part.key: data, **self._encoding.marks}

    def put(self, block: torch.Tensor, codes: torch.Tensor, row: int) -> None:
        """Round rows of the weight from ``row`` on into ``codes``, (rows, columns) of bytes (uint8)."""
        dtype = self._encoding.dtype
        scaled = block.clone() if self._rotation is None else self._turned(block)
        self._scale.divide(scaled, row)
        scaled.clamp_(-_LARGEST[dtype], _LARGEST[dtype])
        if self._words is None:
            target = codes.view(_TORCH[dtype])
            target.copy_(scaled.round_()) if dtype == "I8" else self._nearest.put(scaled, target)
            return
        values, out = scaled.to(torch.float32).view(-1).numpy(), codes.view(-1).numpy()
        for start in range(0, len(values), _PIECE):
            piece = values[start : start + _PIECE]
            halves = self._words.halves(row * self._columns + start, len(piece))
            to_codes(piece, dtype, halves, out[start : start + _PIECE])

    def written(self, codes: torch.Tensor, row: int) -> torch.Tensor:
        """The values that codes (uint8) of rows from ``row`` on stand for, float32."""
        values = torch.empty(codes.shape, dtype=torch.float32)
        decode(codes, self._encoding.dtype, values)
        self._scale.multiply(values, row)
        return self._turned(values)

    def _turned(self, block: torch.Tensor) -> torch.Tensor:
        if self._rotation is None:
            return block
        # the matrix is orthonormal and symmetric in its blocks: the way back is the way there
        turn = self._rotation.T.to(block.dtype)
        turned: torch.Tensor = (block.unflatten(1, (-1, len(turn))) @ turn).flatten(1)  # type: ignore[no-untyped-call]
        return turned


def to_codes(
    values: NDArray[np.float32], dtype: str, halves: NDArray[np.uint16], out: NDArray[np.uint8]
) -> None:
    """Round each value down or up to a code of ``dtype``; the chance is the share of the way, to 2^-16.

    Parameters
    ----------
    values:
        (n,) float32 within the dtype's range; worked on in place.
    halves:
        (n,) random bits.
    out:
        (n,) the codes.
    """
    if dtype == "I8":
        values += halves * np.float32(2.0**-16)
        np.copyto(out.view(np.int8), np.floor(values, out=values), casting="unsafe")
        return
    bias, mantissa = _FLOATS[dtype]
    dropped = 23 - mantissa
    # with the dtype's bias in the place of float32's, subnormal numbers fall together, too
    values *= np.float32(2.0 ** (bias - 127))
    bits = values.view(np.uint32)
    signs = bits >> np.uint32(24)
    signs &= np.uint32(0x80)
    bits &= np.uint32(0x7FFFFFFF)
    bits += halves.astype(np.uint32) << np.uint32(dropped - 16)
    bits >>= np.uint32(dropped)
    bits |= signs
    np.copyto(out, bits, casting="unsafe")


def scale_bytes(scale: NDArray[np.float64], dtype: str) -> tuple[bytes, NDArray[np.float64]]:
    """Scales as ``dtype``, none smaller than it is, and their values then; an empty block has 1.

    ``F8_E8M0`` and ``U8`` are exponents of two with a bias of 127, and 0 stands for an empty block.
    """
    if dtype in ("F8_E8M0", "U8"):
        with np.errstate(divide="ignore"):
            exponents = np.ceil(np.log2(scale))
        stored = np.where(scale == 0, 0, np.clip(exponents + 127, 1, 254)).astype(np.uint8)
        return stored.tobytes(), np.where(stored == 0, 1.0, np.ldexp(1.0, stored.astype(np.int32) - 127))
    given = np.where(scale == 0, 1.0, scale)
    numbers = given.astype(NUMPY[dtype])
    bits = numbers.view(f"u{numbers.itemsize}")
    bits += numbers.astype(np.float64) < given
    return numbers.tobytes(), numbers.astype(np.float64)
