"""The arithmetic on one stored tensor, in blocks of rows that stay in a core's cache.

Arithmetic is in float32 for F16 and 8-bit floats and in float64 for the others, with one rounding into the
output. BF16 needs float64 too: it has float32's range, so where a result nearly cancels its spacing is finer
than float32's error (F16 spaces its smallest values by 6e-8, which is not).

A tensor is seen as the matrix of its first axis against all others (paper's section 3.1, "Remark on
convolutional kernels"); layers that are stored transposed, or as rows of a stacked matrix (OpenCLIP), are
edited in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from paramerge.apply.chain import ChainChange, load_chain
from paramerge.apply.dense import Added, LayerInTensor, LayerResult, WholeLayer
from paramerge.apply.encoder import Encoder
from paramerge.apply.operations import Edit
from paramerge.apply.rounding import Rounder
from paramerge.apply.sampling import Grid
from paramerge.apply.stochastic import StochasticRounder
from paramerge.apply.tensor_plan import TensorPlan, matrix_shape
from paramerge.errors import NonFiniteError

_BLOCK_ELEMENTS = 1 << 18

_PARTIAL_ROWS = 1024
"""Rows summed up in the compute dtype before the sum goes into float64: quick, and as exact as is needed."""

_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class Blocks:
    """Matrices by blocks of rows, copied into one reused scratch of each dtype. One per worker."""

    def __init__(self) -> None:
        self._scratch: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self.rounder = Rounder()

    def of(self, matrix: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, int]]:
        """Each block of ``matrix`` as ``dtype``, with its first row's index; valid until the next one."""
        for start, stop in runs_of_rows(*matrix.shape):
            shape, rows = (stop - start, matrix.shape[1]), matrix[start:stop]
            if (matrix.dtype, dtype) == (torch.float16, torch.float64):
                rows = self.scratch(0, shape, torch.float32).copy_(rows)  # exact, and torch is slow at once
            block = self.scratch(0, shape, dtype)
            block.copy_(rows)
            yield block, start

    def scratch(self, place: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Memory for a block; what was got for another ``place`` or dtype stays as it is."""
        count = shape[0] * shape[1]
        found = self._scratch.get((place, dtype))
        if found is None or len(found) < count:
            found = torch.empty(max(count, _BLOCK_ELEMENTS), dtype=dtype)
            self._scratch[place, dtype] = found
        return found[:count].view(shape)


def runs_of_rows(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """The rows ``[start, stop)`` of each block of a matrix."""
    step = max(1, _BLOCK_ELEMENTS // max(1, columns))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


class TensorEditor:
    """Applies the edits of one tensor: first :meth:`look` at all its rows, then :meth:`write` them.

    Both take any runs of whole rows, so that the tensor need not be in memory at once.
    """

    def __init__(self, plan: TensorPlan, blocks: Blocks) -> None:
        self._plan = plan
        self._blocks = blocks
        self._compute = _compute_dtype(plan)
        self._layers = [
            WholeLayer(edit) if edit.needs_whole else _Layer(edit, self._compute) for edit in plan.edits
        ]
        for layer in self._layers:
            layer.probe = layer.new_probe(matrix_shape(plan.shape)[1], plan.dtype, self._compute)
        self._stochastic = (
            StochasticRounder(f"{plan.component}: {plan.info.key}", plan.dtype)
            if plan.rounding == "stochastic"
            else None
        )
        self._ready = False
        self._values = plan.values.open(blocks, self._compute) if plan.values is not None else None
        self.encoder = Encoder(plan.encoding, plan.info.key) if plan.encoding is not None else None

    @property
    def must_look(self) -> bool:
        """Whether any step depends on the weight, so that :meth:`look` must see it all before writing."""
        return any(layer.must_look for layer in self._layers)

    @property
    def results(self) -> list[LayerResult]:
        """The outcome for each layer of the tensor."""
        return [
            LayerResult(layer.name, layer.removed, layer.rank, layer.probe.result(layer.changes_by_op))
            for layer in self._layers
        ]

    def look(self, weight: torch.Tensor, first_row: int) -> None:
        """See ``weight`` (rows, columns), whose first row is row ``first_row`` of the tensor."""
        for layer in self._layers:
            start, stop = layer.overlap(first_row, len(weight))
            if layer.must_look and start < stop:
                for block, begin in self._blocks_of(weight, start, stop, first_row):
                    layer.look(block, first_row + start + begin)

    def write(self, weight: torch.Tensor, target: torch.Tensor, first_row: int) -> None:
        """Change ``weight`` and round it into ``target`` (which may share its memory), both (rows, columns).

        Rows that no step reaches keep their bytes where the dtype is kept.

        Raises
        ------
        NonFiniteError
            A value of the result is NaN or beyond the range of the output's dtype.
        """
        self._work_out()
        for start, stop in self._cuts(first_row, len(weight)):
            here = [layer for layer in self._layers if layer.changes(first_row + start, first_row + stop)]
            if not here and not self._plan.converted and self._values is None and self.encoder is None:
                if target.data_ptr() != weight.data_ptr():
                    target[start:stop] = weight[start:stop]
                continue
            if self._values is None:
                for layer in here:
                    layer.probe.before(weight[start:stop], first_row + start)
            for block, begin in self._blocks_of(weight, start, stop, first_row):
                self._write_block(
                    block, target[start + begin :][: len(block)], first_row + start + begin, here
                )
            if self.encoder is None:
                for layer in here:
                    layer.probe.after(target[start:stop], first_row + start)

    def _write_block(
        self, block: torch.Tensor, out: torch.Tensor, row: int, here: Sequence[_Layer | WholeLayer]
    ) -> None:
        for layer in here:
            if self._values is not None:
                layer.probe.before(block, row)
            layer.add_to(block, row)
            if layer.is_one_addition:
                layer.probe.meant(block, row)
        self._check_finite(block, row, here)
        self._round(block, out, row, changed=bool(here) or self._values is not None)
        if self.encoder is not None and here:
            written = self.encoder.written(out, row)
            for layer in here:
                layer.probe.after(written, row)

    def _round(self, block: torch.Tensor, target: torch.Tensor, row: int, *, changed: bool) -> None:
        if self.encoder is not None:
            self.encoder.put(block, target, row)
        elif self._stochastic is not None and changed:
            self._stochastic.put(block, target, row * block.shape[1])
        else:
            self._blocks.rounder.put(block, target)

    def measure(self, weight: torch.Tensor, first_row: int) -> None:
        """See ``weight`` as it will be when it is changed, for the scales that it is written with."""
        self._work_out()
        for start, stop in self._cuts(first_row, len(weight)):
            here = [layer for layer in self._layers if layer.changes(first_row + start, first_row + stop)]
            for block, begin in self._blocks_of(weight, start, stop, first_row):
                row = first_row + start + begin
                for layer in here:
                    layer.add_to(block, row)
                self._check_finite(block, row, here)
                if self.encoder is not None:
                    self.encoder.look(block, row)

    def _work_out(self) -> None:
        if not self._ready:
            for layer in self._layers:
                layer.work_out()
            self._ready = True

    def _blocks_of(
        self, weight: torch.Tensor, start: int, stop: int, first_row: int
    ) -> Iterator[tuple[torch.Tensor, int]]:
        """Blocks of rows ``start`` to ``stop`` of ``weight``, or of the tensor's own values there."""
        if self._values is None:
            yield from self._blocks.of(weight[start:stop], self._compute)
            return
        for begin, end in runs_of_rows(stop - start, weight.shape[1]):
            yield self._values.block(first_row + start + begin, first_row + start + end), begin

    def _check_finite(self, block: torch.Tensor, row: int, layers: Sequence[_Layer | WholeLayer]) -> None:
        try:
            _check_finite(block, self._plan, layers)
        except NonFiniteError:
            if self._values is not None:
                self._values.refuse_non_finite(row, row + len(block))
            raise

    def _cuts(self, first_row: int, rows: int) -> list[tuple[int, int]]:
        """The rows cut where a layer begins or ends (layers are row slices of a stacked weight)."""
        cuts = {0, rows}
        for layer in self._layers:
            cuts.update(layer.overlap(first_row, rows))
        ordered = sorted(cuts)
        return [(a, b) for a, b in itertools.pairwise(ordered) if a < b]


class _Layer(LayerInTensor):
    """One layer within a stored tensor: its chain of steps and where its rows are."""

    def __init__(self, edit: Edit, compute: torch.dtype) -> None:
        super().__init__(edit)
        target = edit.target
        self._compute = compute
        self._chain = load_chain(target.module, edit.ops)
        self._left: torch.Tensor | None = None
        self._right: torch.Tensor | None = None
        self._added: Added | None = None
        self._change: ChainChange | None = None
        self._idle = False
        self.rank = self.removed = 0
        basis = self._chain.basis
        self.must_look = basis is not None
        if basis is not None:
            columns = 1
            for size in target.shape[1:]:
                columns *= size
            self._basis = basis.to(compute)
            self._seen = torch.zeros((basis.shape[1], columns), dtype=torch.float64)
            self._partial = torch.zeros((basis.shape[1], columns), dtype=compute)
            self._partial_rows = 0

    def look(self, block: torch.Tensor, row: int) -> None:
        """Add ``block``, beginning at ``row`` of the tensor, to ``C = Q^T W``."""
        at = slice(row - self._start, row - self._start + len(block))
        if self._edit.target.transposed:
            self._seen[:, at] = (block @ self._basis).T
            return
        self._partial.addmm_(self._basis[at].T, block)
        self._partial_rows += len(block)
        if self._partial_rows >= _PARTIAL_ROWS:
            self._fold()

    def _fold(self) -> None:
        self._seen += self._partial
        self._partial.zero_()
        self._partial_rows = 0

    def work_out(self) -> None:
        if self.must_look:
            self._fold()
        self._change = change = self._chain.change(self._seen if self.must_look else None)
        if change is None:
            return
        self.rank, self.removed = change.rank, change.removed
        left, right = change.up, change.down
        if change.added:
            self._added = Added(change.added, self._edit.target.transposed)
            self.is_one_addition = len(self._edit.ops) == 1
        if self._edit.target.transposed:
            left, right = right.T, left.T
        self._left, self._right = left.to(self._compute).contiguous(), right.to(self._compute).contiguous()
        if self._added is None:
            self._idle_rows, self._idle_columns = ~self._left.any(dim=1), ~self._right.any(dim=0)
            self._idle = bool(self._idle_rows.any() or self._idle_columns.any())

    def changes_by_op(self, grid: Grid) -> list[torch.Tensor]:
        """The sample of each operation's change of the rows as they are stored, float64."""
        if self._change is None:
            return []
        return self._change.by_link(grid, transposed=self._edit.target.transposed)

    def changes(self, start: int, stop: int) -> bool:
        """Whether it changes rows ``start`` to ``stop``, which are wholly inside or outside of it."""
        return self._left is not None and self._start <= start and stop <= self._stop

    def add_to(self, block: torch.Tensor, row: int) -> None:
        if self._left is not None and self._right is not None:
            begin = row - self._start
            before = block.clone() if self._idle else None
            block.addmm_(self._left[begin : begin + len(block)], self._right)
            if before is not None:  # a sum with 0 made +0 of a -0
                idle = self._idle_rows[begin : begin + len(block), None] | self._idle_columns
                torch.where(idle, before, block, out=block)
            if self._added is not None:
                self._added.add_to(block, begin)


def as_codes(data: memoryview, columns: int) -> torch.Tensor:
    """The bytes ``data`` as a matrix of ``columns`` codes of one byte, sharing their memory."""
    return torch.frombuffer(data, dtype=torch.uint8).view(-1, columns)


def as_matrix(data: memoryview, dtype: str, columns: int) -> torch.Tensor:
    """The bytes ``data`` as a matrix of ``columns`` columns, sharing their memory."""
    return torch.frombuffer(data, dtype=_TORCH[dtype]).view(-1, columns)


def torch_dtype(dtype: str) -> torch.dtype:
    """torch's dtype for one of :data:`paramerge.files.dtypes.FLOATS`."""
    return _TORCH[dtype]


def _compute_dtype(plan: TensorPlan) -> torch.dtype:
    if plan.encoding is not None:  # codes are so coarse that no error of float32 is seen in them
        return torch.float32
    if plan.values is not None:
        narrow = plan.values.dtypes | {plan.dtype} <= {"F16", "F8_E4M3", "F8_E5M2"}
        return torch.float32 if narrow else torch.float64
    wide = plan.info.dtype == "F64" or (plan.edits and plan.dtype in ("BF16", "F32", "F64"))
    return torch.float64 if wide else torch.float32


def _check_finite(block: torch.Tensor, plan: TensorPlan, layers: Sequence[_Layer | WholeLayer]) -> None:
    """Refuse NaN, and anything beyond the range of the output's dtype."""
    limit = torch.finfo(torch.float32 if plan.encoding is not None else _TORCH[plan.dtype]).max
    flat = block.view(-1)
    # a sum of squares takes a quarter of the time, and if it is well below, no single value is beyond
    if float(torch.dot(flat, flat)) < 0.9 * limit * limit:
        return
    lowest, highest = torch.aminmax(block)
    if bool(lowest >= -limit) and bool(highest <= limit):
        return
    raise NonFiniteError(
        "the result is not finite",
        where=", ".join(layer.name for layer in layers) or plan.info.key,
        expected=f"values within {limit:g}, the range of {plan.dtype}",
        found=f"{float(lowest):g} to {float(highest):g}",
        hint="the base holds NaN or Inf there, or the adapter's scale is far too large; nothing was written",
    )
