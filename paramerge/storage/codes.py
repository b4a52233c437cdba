"""Codes of one byte with a scale, read by rows: a table of the 256 values, and one multiplication."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch

from paramerge.files.dtypes import NUMPY
from paramerge.files.tensors import StoredTensor
from paramerge.storage.scales import Grid, matrix_of

_NAN_OF_E4M3 = 480.0


@cache
def values_of_bytes(dtype: str, compute: torch.dtype) -> torch.Tensor:
    """The values of all bytes as ``dtype`` (an 8-bit one), (256,) in ``compute``."""
    numbers = np.arange(256, dtype=np.uint8).view(NUMPY[dtype]).astype(np.float64)
    return torch.from_numpy(numbers).to(compute)


def decode(codes: torch.Tensor, dtype: str, out: torch.Tensor) -> None:
    """Put the values of codes (uint8) into ``out``, of the same shape, contiguous, float32 or float64.

    The bits of F8_E4M3 are those of a float16 with another bias, two to three times as quick as a table; its
    NaN would come out as 480, which no code stands for.
    """
    if dtype == "I8":
        out.copy_(codes.view(torch.int8))
    elif dtype == "F8_E4M3" and out.dtype == torch.float32:
        halves = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
        out.copy_(halves.view(torch.float16)).mul_(256)
        lowest, highest = torch.aminmax(out) if out.numel() else (out.sum(), out.sum())
        if _NAN_OF_E4M3 in (-float(lowest), float(highest)):
            out[out.abs() == _NAN_OF_E4M3] = torch.nan
    else:
        index = codes.reshape(-1).to(torch.int32)
        torch.index_select(values_of_bytes(dtype, out.dtype), 0, index, out=out.view(-1))


class CodeRows:
    """Bytes of a stored tensor by rows, in memory of its own. For one thread."""

    def __init__(self, tensor: StoredTensor, row_bytes: int) -> None:
        self._tensor, self._row = tensor, row_bytes
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """The bytes of rows ``start`` to ``stop``, (rows, bytes of a row); valid until the next call."""
        count = (stop - start) * self._row
        if len(self._bytes) < count:
            self._bytes = torch.empty(count, dtype=torch.uint8)
        found = self._bytes[:count]
        self._tensor.source.read_into(found.numpy().data, self._tensor.info.start + start * self._row)
        return found.view(stop - start, self._row)


class ByteCodes:
    """Codes of one byte each: ``values[code] * scale``, exact in float64."""

    def __init__(self, tensor: StoredTensor, grid: Grid, scale: np.ndarray) -> None:
        self.columns = matrix_of(tensor.shape)[1]
        self._dtype = tensor.dtype
        self._rows = CodeRows(tensor, self.columns)
        self._scale = GridScale(grid, scale)

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Put rows ``start`` to ``stop`` into ``out``."""
        self.read_unscaled(start, stop, out)
        self.scale(out, start)

    def scale(self, values: torch.Tensor, start: int) -> None:
        """Multiply rows from ``start`` on by their scales, in place."""
        self._scale.multiply(values, start)

    def read_unscaled(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Put the codes' own values into ``out``."""
        decode(self._rows.read(start, stop), self._dtype, out)


class GridScale:
    """A scale over a grid of blocks."""

    def __init__(self, grid: Grid, scale: np.ndarray) -> None:
        self._grid = grid
        self._scale = torch.from_numpy(np.ascontiguousarray(scale.reshape(grid.rows, grid.columns)))

    def multiply(self, block: torch.Tensor, first_row: int) -> None:
        """Multiply the weight's rows from ``first_row`` on, in place."""
        for part, factors in self._parts(block, first_row):
            part.mul_(factors)

    def divide(self, block: torch.Tensor, first_row: int) -> None:
        """Divide the weight's rows from ``first_row`` on, in place."""
        for part, factors in self._parts(block, first_row):
            part.div_(factors)

    def _parts(self, block: torch.Tensor, first_row: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Views of ``block``, each with its scales in a shape that goes with it."""
        grid = self._grid
        if grid.rows == grid.columns == 1:
            yield block, self._scale[0, 0]
            return
        rows = torch.arange(first_row, first_row + len(block)) // grid.block_rows
        factors = self._scale[rows].to(block.dtype)
        if grid.columns == 1:
            yield block, factors
            return
        whole = block.shape[1] // grid.block_columns
        inside = block[:, : whole * grid.block_columns]
        yield inside.unflatten(1, (whole, grid.block_columns)), factors[:, :whole, None]  # type: ignore[no-untyped-call]
        if whole < grid.columns:
            yield block[:, whole * grid.block_columns :], factors[:, whole:]
