"""The values of a merged tensor: methods over blocks of rows, read from each model when they are needed.

A method that needs sums over the whole tensor first has a pass of its own over all blocks; one that must see
the whole tensor has it made once, and gives rows of it after that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import numpy as np
import torch

from paramerge.apply.kernel import Blocks, runs_of_rows, torch_dtype
from paramerge.errors import NonFiniteError
from paramerge.merge.checkpoints.ingredients import Ingredient, Merged, MergedValues, Piece, Rows
from paramerge.merge.methods.method import ColumnSums, Draws


class Evaluation:
    """The values of one tensor (see :class:`paramerge.apply.values.OpenValues`)."""

    def __init__(self, values: MergedValues, blocks: Blocks, compute: torch.dtype) -> None:
        self._shape = values.shape
        self._compute = compute
        self._blocks = blocks
        self._places = count(1)
        self._made: dict[int, _Merging] = {}
        self._top = self._opened(values.made_of)

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop``; valid until the next call, free to change."""
        return self._top.block(start, stop)

    def refuse_non_finite(self, start: int, stop: int) -> None:
        """Raise for the first input that is not finite in those rows."""
        self._top.refuse_non_finite(start, stop)

    def _opened(self, ingredient: Ingredient) -> _Reading | _Merging:
        if isinstance(ingredient, Rows):
            return _Reading(ingredient, self._scratch(), self._shape[1])
        if id(ingredient) not in self._made:
            parts = [self._opened(part) for part in ingredient.ingredients]
            self._made[id(ingredient)] = _Merging(ingredient, parts, self._scratch(), self._shape)
        else:
            self._made[id(ingredient)].shared = True
        return self._made[id(ingredient)]

    def _scratch(self) -> _Scratch:
        return _Scratch(self._blocks, next(self._places), self._compute)


class _Scratch:
    """A worker's memory for one ingredient."""

    def __init__(self, blocks: Blocks, place: int, compute: torch.dtype) -> None:
        self._blocks, self._place = blocks, place
        self.compute = compute

    def block(self, rows: int, columns: int) -> torch.Tensor:
        return self._blocks.scratch(self._place, (rows, columns), self.compute)

    def stored(self, rows: int, columns: int, dtype: str) -> torch.Tensor:
        """Memory into which a block is read as it is stored."""
        return self._blocks.scratch(-1, (rows, columns), torch_dtype(dtype))


class _Reading:
    """A model's rows, read and converted."""

    def __init__(self, rows: Rows, scratch: _Scratch, columns: int) -> None:
        self._rows, self._scratch, self._columns = rows, scratch, columns
        self._transposed: dict[Piece, torch.Tensor] = {}

    def block(self, start: int, stop: int) -> torch.Tensor:
        block = self._scratch.block(stop - start, self._columns)
        for piece in self._rows.pieces:
            begin, end = max(start, piece.start), min(stop, piece.stop)
            if begin < end:
                self._read(piece, begin, end, block[begin - start : end - start])
        return block

    def _read(self, piece: Piece, start: int, stop: int, target: torch.Tensor) -> None:
        first = piece.first + start - piece.start
        if piece.transposed:
            if piece not in self._transposed:
                self._transposed[piece] = torch.from_numpy(np.ascontiguousarray(piece.tensor.read_exact().T))
            target.copy_(self._transposed[piece][first : first + stop - start])
            return
        stored = self._scratch.stored(stop - start, piece.columns, piece.tensor.dtype)
        view = memoryview(stored.view(torch.uint8).numpy()).cast("B")
        row = piece.columns * stored.element_size()
        piece.tensor.source.read_into(view, piece.tensor.info.start + first * row)
        target[:, : piece.columns].copy_(stored)
        target[:, piece.columns :].zero_()  # input channels that this model has not

    def refuse_non_finite(self, start: int, stop: int) -> None:
        block = self.block(start, stop)
        if bool(torch.isfinite(block).all()):
            return
        tensor = next(p.tensor for p in self._rows.pieces if p.stop > start)
        raise NonFiniteError(
            "a model that is merged holds NaN or Inf",
            where=f"{tensor.path}: {tensor.key}",
            expected="finite numbers",
            found=f"{int((~torch.isfinite(block)).sum())} of them within rows {start} to {stop - 1}",
            hint="take the model from its source again; nothing was written",
        )


class _Merging:
    """A method's result of its ingredients, computed by blocks."""

    def __init__(
        self, merged: Merged, parts: list[_Reading | _Merging], scratch: _Scratch, shape: tuple[int, int]
    ) -> None:
        self._method, self._parameters = merged.method, dict(merged.parameters)
        self._draws = Draws(merged.name)
        self._parts, self._scratch, self._shape = parts, scratch, shape
        self._known: np.ndarray | ColumnSums | torch.Tensor | None = None
        self._last: tuple[int, int, torch.Tensor] | None = None
        self.shared = False

    def block(self, start: int, stop: int) -> torch.Tensor:
        if not self.shared:
            return self._block(start, stop)
        if self._last is None or self._last[:2] != (start, stop):
            self._last = (start, stop, self._block(start, stop).clone())
        return self._last[2].clone()

    def refuse_non_finite(self, start: int, stop: int) -> None:
        for part in self._parts:
            part.refuse_non_finite(start, stop)

    def _block(self, start: int, stop: int) -> torch.Tensor:
        function, parameters = self._method.function, self._parameters
        if self._method.sees == "elements":
            draws = replace(self._draws, first=start * self._shape[1])
            result: torch.Tensor = function(self._blocks(start, stop), draws, **parameters)
            return result
        if self._known is None:
            self._known = self._look()
        if isinstance(self._known, torch.Tensor):
            return self._scratch.block(stop - start, self._shape[1]).copy_(self._known[start:stop])
        blocks = self._blocks(start, stop)
        if isinstance(self._known, ColumnSums):
            result = function(blocks, self._known, **parameters)
            return result
        return _combined(blocks, self._known, relative=self._method.sees == "differences")

    def _blocks(self, start: int, stop: int) -> list[torch.Tensor]:
        return [part.block(start, stop) for part in self._parts]

    def _look(self) -> np.ndarray | ColumnSums | torch.Tensor:
        """The whole tensor, or the sums over it, that the method needs before its result."""
        if self._method.sees == "tensor":
            return self._whole()
        if self._method.sees == "columns":
            return self._column_sums()
        count = len(self._parts)
        gram = np.zeros((count, count))
        for start, stop in self._runs():
            blocks = self._blocks(start, stop)
            if self._method.sees == "differences":
                for block in blocks[1:]:
                    block.sub_(blocks[0])
                blocks[0].zero_()
            flat = torch.stack([block.reshape(-1).to(torch.float64) for block in blocks])
            gram += (flat @ flat.T).numpy()
        self._refuse_unless(bool(np.isfinite(gram).all()))
        return np.asarray(self._method.function(gram, **self._parameters), np.float64)

    def _column_sums(self) -> ColumnSums:
        sums = torch.zeros((3, self._shape[1]), dtype=torch.float64)
        for start, stop in self._runs():
            a, b = (block.to(torch.float64) for block in self._blocks(start, stop))
            sums += torch.stack([(a * b).sum(dim=0), (a * a).sum(dim=0), (b * b).sum(dim=0)])
        self._refuse_unless(bool(torch.isfinite(sums).all()))
        return ColumnSums(*(total.numpy() for total in sums))

    def _whole(self) -> torch.Tensor:
        wholes = [torch.empty(self._shape, dtype=self._scratch.compute) for _ in self._parts]
        for start, stop in self._runs():
            for whole, block in zip(wholes, self._blocks(start, stop), strict=True):
                whole[start:stop] = block
        self._refuse_unless(all(bool(torch.isfinite(whole).all()) for whole in wholes))
        result: torch.Tensor = self._method.function(wholes, self._draws, **self._parameters)
        return result

    def _runs(self) -> Iterator[tuple[int, int]]:
        return runs_of_rows(*self._shape)

    def _refuse_unless(self, finite: bool) -> None:
        if not finite:
            for start, stop in self._runs():
                self.refuse_non_finite(start, stop)


def _combined(blocks: list[torch.Tensor], coefficients: np.ndarray, *, relative: bool) -> torch.Tensor:
    """``sum c_i m_i``, or ``m_0 + sum c_i (m_i - m_0)``."""
    first = blocks[0]
    if relative:
        differences = [block.sub_(first) for block in blocks[1:]]
        for difference, coefficient in zip(differences, coefficients[1:], strict=True):
            first.add_(difference, alpha=float(coefficient))
        return first
    first.mul_(float(coefficients[0]))
    for block, coefficient in zip(blocks[1:], coefficients[1:], strict=True):
        first.add_(block, alpha=float(coefficient))
    return first
