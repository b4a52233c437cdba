"""The values of a merged tensor: methods over blocks of rows, read from each model when they are needed.

A method that needs something of the whole tensor first, such as sums over it, has passes of its own over all
blocks: no tensor is held as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch

from paramerge.apply.kernel import Blocks, runs_of_rows, torch_dtype
from paramerge.errors import NonFiniteError
from paramerge.merge.checkpoints.cuts import EVERYTHING, Cut, Sampled
from paramerge.merge.checkpoints.ingredients import Ingredient, Merged, MergedValues, Piece, Rows
from paramerge.merge.methods.method import ColumnSums, Cuts, Draws, Sees
from paramerge.storage.scheme import OpenCodes
from paramerge.storage.tensor import TrueTensor

_SAMPLED_PART = 8
"""A sample is first taken from one row in so many."""


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

    def wide(self, rows: int, columns: int) -> torch.Tensor:
        """Memory for blocks in float64, beside those of all ingredients."""
        return self._blocks.scratch(-2, (rows, columns), torch.float64)

    def stored(self, rows: int, columns: int, dtype: str) -> torch.Tensor:
        """Memory into which a block is read as it is stored."""
        return self._blocks.scratch(-1, (rows, columns), torch_dtype(dtype))


class _Reading:
    """A model's rows, read and converted."""

    def __init__(self, rows: Rows, scratch: _Scratch, columns: int) -> None:
        self._rows, self._scratch, self._columns = rows, scratch, columns
        self._transposed: dict[Piece, torch.Tensor] = {}
        self._opened: dict[Piece, OpenCodes] = {}

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
        if isinstance(piece.tensor, TrueTensor):
            if piece not in self._opened:
                self._opened[piece] = piece.tensor.open()
            codes = self._opened[piece]
            values = self._scratch.wide(stop - start, piece.columns)
            codes.read(first, first + stop - start, values)
            target[:, : piece.columns].copy_(values)
            target[:, piece.columns :].zero_()
            return
        stored = self._scratch.stored(stop - start, piece.columns, piece.tensor.dtype)
        view = stored.view(torch.uint8).numpy().data.cast("B")
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
        self._known: Any = None
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
        method, parameters = self._method, self._parameters
        if method.sees == "elements" or (method.sees == "rows" and self._shape[1] > 1):
            draws = replace(self._draws, first=start * self._shape[1])
            return self._made(method.function(self._blocks(start, stop), draws, **parameters))
        if method.sees == "rows":
            return self._vector()[start:stop].clone()
        if self._known is None:
            self._known = _LOOKS[method.sees](self)
        if method.sees in ("gram", "differences"):
            return _combined(self._blocks(start, stop), self._known, relative=method.sees == "differences")
        return self._made(method.function(self._blocks(start, stop), self._known, **parameters))

    @staticmethod
    def _made(block: Any) -> torch.Tensor:
        result: torch.Tensor = block
        return result

    def _blocks(self, start: int, stop: int) -> list[torch.Tensor]:
        return [part.block(start, stop) for part in self._parts]

    def _vector(self) -> torch.Tensor:
        """All of a vector, worked out once."""
        if self._known is None:
            blocks = [[block.clone() for block in self._blocks(*run)] for run in self._runs()]
            wholes = [torch.cat(parts) for parts in zip(*blocks, strict=True)]
            self._known = self._method.function(wholes, self._draws, **self._parameters)
        return self._made(self._known)

    def coefficients(self) -> np.ndarray:
        """The scalars of a method by inner products, of the models or of their differences to the first."""
        gram = torch.zeros((len(self._parts),) * 2, dtype=torch.float64)
        for start, stop in self._runs():
            blocks = self._blocks(start, stop)
            wide = self._scratch.wide(len(blocks), blocks[0].numel())
            for block, row in zip(blocks, wide, strict=True):
                if self._method.sees == "differences" and block is not blocks[0]:
                    block.sub_(blocks[0])
                row.copy_(block.view(-1))
            if self._method.sees == "differences":
                wide[0].zero_()
            gram += wide @ wide.T
        self._refuse_unless(bool(torch.isfinite(gram).all()))
        return np.asarray(self._method.function(gram.numpy(), **self._parameters), np.float64)

    def column_sums(self) -> ColumnSums:
        """Sums over the columns of two models."""
        sums = torch.zeros((3, self._shape[1]), dtype=torch.float64)
        for start, stop in self._runs():
            a, b = (block.to(torch.float64) for block in self._blocks(start, stop))
            sums += torch.stack([(a * b).sum(dim=0), (a * a).sum(dim=0), (b * b).sum(dim=0)])
        self._refuse_unless(bool(torch.isfinite(sums).all()))
        return ColumnSums(*(total.numpy() for total in sums))

    def cuts(self) -> Cuts:
        """The magnitudes that so many differences of each model to the first have at least."""
        size = self._shape[0] * self._shape[1]
        counts = self._method.cuts(size, **self._parameters)
        for part in (_SAMPLED_PART, 1, None):  # rows may differ, and mislead a sample of few of them
            samples = self._sampled(part, size) if part else []
            brackets = [[sample.bracket(n, size) for n in counts] for sample in samples]
            brackets = brackets or [[EVERYTHING] * len(counts) for _ in self._parts[1:]]
            cuts = [[Cut(n, size, b) for n, b in zip(counts, own, strict=True)] for own in brackets]
            found = self._looked_up(cuts)
            if all(value is not None for values in found for value in values):
                break
        return [tuple(value for value in values if value is not None) for values in found]

    def _sampled(self, part: int, size: int) -> list[Sampled]:
        """A sample of each model's differences, from the first of so many parts of each block."""
        samples = [Sampled(size // part) for _ in self._parts[1:]]
        for start, stop in self._runs():
            end = start + -(-(stop - start) // part)
            for sample, magnitudes in zip(samples, self._magnitudes(start, end), strict=True):
                sample.look(magnitudes)
        return samples

    def _looked_up(self, cuts: list[list[Cut]]) -> list[list[float | None]]:
        for start, stop in self._runs():
            for own, magnitudes in zip(cuts, self._magnitudes(start, stop), strict=True):
                self._refuse_unless(bool(np.isfinite(magnitudes.max())))
                for cut in own:
                    cut.look(magnitudes)
        return [[cut.value() for cut in own] for own in cuts]

    def _magnitudes(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """By model after the first, its differences' magnitudes in those rows, flat."""
        first, *others = self._blocks(start, stop)
        return (other.sub_(first).abs_().view(-1).numpy() for other in others)

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


_LOOKS: dict[Sees, Callable[[_Merging], Any]] = {
    "gram": _Merging.coefficients,
    "differences": _Merging.coefficients,
    "columns": _Merging.column_sums,
    "cuts": _Merging.cuts,
}
"""Looks at the whole tensor that a method needs first, by how it sees one."""
