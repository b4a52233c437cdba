"""A sample of a matrix: of each row one of equal runs of columns, the next row's being the next run.

So every row and every column is in it, it is read in runs, and of a product of thin factors it is a batch of
small products. Small matrices are their own sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_FARTHEST = 1.5
"""Factor by which the length of a run may differ from the wanted one, to divide the columns better."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The sample of a matrix (rows, columns): of row ``i`` the run ``i mod groups`` of ``width`` columns."""

    rows: int
    columns: int
    groups: int
    width: int

    @classmethod
    def of(cls, rows: int, columns: int, elements: int) -> Grid:
        """A sample of about ``elements``, or all of a matrix that is not much larger."""
        wanted = min(rows * columns // max(1, elements), rows, columns)
        if wanted < 2:
            return cls(rows, columns, 1, columns)
        middle = columns / wanted
        widths = range(max(1, int(middle / _FARTHEST)), min(columns // 2, int(middle * _FARTHEST)) + 1)
        width = min(widths, key=lambda width: (columns % width, abs(width - middle)))
        return cls(rows, columns, min(columns // width, rows), width)

    @property
    def size(self) -> int:
        """The number of its elements."""
        return self.rows * self.width

    @property
    def scale(self) -> float:
        """The matrix's elements for each of its own; 1 where it is the whole."""
        return self.columns / self.width

    def take(self, block: torch.Tensor, first: int, out: torch.Tensor) -> None:
        """Copy the sample of ``block``, rows ``first`` ... of the matrix, to those rows of ``out``.

        ``block`` is contiguous; ``out`` is (rows, width) and may have another dtype.
        """
        stop = first + len(block)
        whole = min(-(-first // self.groups) * self.groups, stop)  # the first row that begins a turn of runs
        end = max(whole, stop // self.groups * self.groups)
        for begin, until, turns in (
            (first, whole, 1),
            (whole, end, (end - whole) // self.groups),
            (end, stop, 1),
        ):
            if begin < until:
                size = (turns, (until - begin) // turns, self.width)
                stride = (self.groups * self.columns, self.columns + self.width, 1)
                offset = (begin - first) * self.columns + begin % self.groups * self.width
                view = block.as_strided(size, stride, block.storage_offset() + offset)
                out[begin:until].view(size).copy_(view)

    def taken(self, matrix: torch.Tensor) -> torch.Tensor:
        """The sample of a whole matrix, (rows, width)."""
        out = torch.empty((self.rows, self.width), dtype=matrix.dtype)
        self.take(matrix.contiguous(), 0, out)
        return out

    def of_product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """The sample of ``left @ right``, (rows, width), for (rows, r) and (r, columns)."""
        rank, groups = left.shape[1], self.groups
        if groups == 1:
            return left @ right
        turns = -(-self.rows // groups)
        padded = torch.zeros((turns * groups, rank), dtype=left.dtype)
        padded[: self.rows] = left
        runs = right[:, : groups * self.width].reshape(rank, groups, self.width).transpose(0, 1)
        found = torch.bmm(padded.view(turns, groups, rank).transpose(0, 1), runs)
        return found.transpose(0, 1).reshape(-1, self.width)[: self.rows]
