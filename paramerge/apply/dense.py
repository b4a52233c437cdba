"""Changes beyond low-rank arithmetic: those made row by row, and steps that need the whole weight.

A chain is cut into segments. A run of steps that do not depend on the weight (and of PaRas, which need of it
only ``Q^T W``) is one chain as ever; DoRA, IA3, OFT, BOFT, GLoRA and SVDiff are segments of their own, which
act on the whole weight as the steps before them left it, in float64. Such a layer is held in memory as a
whole, one at a time in the whole process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from paramerge.apply.chain import DeltaLink, load_chain
from paramerge.apply.operations import Edit, FamilyOp, Op, ParaOp
from paramerge.apply.sampling import Grid
from paramerge.apply.survival import LayerSurvival, Probe
from paramerge.apply.tensor_plan import TensorPlan
from paramerge.files.dtypes import is_float, unit_roundoff
from paramerge.models.names import ModuleName

_ROOM = threading.Lock()

_OF_CODES = 2.0**-6
"""The error of 8-bit whole numbers with a scale, relative to a weight."""


@contextmanager
def room_for(plan: TensorPlan) -> Iterator[None]:
    """Wait until no other layer is held as a whole, if this tensor needs that."""
    if not any(edit.needs_whole for edit in plan.edits):
        yield
        return
    with _ROOM:
        yield


class Watched:
    """A sample of the change that each operation makes of a layer, as it is stored."""

    def __init__(self, grid: Grid, *, transposed: bool) -> None:
        self.grid, self.transposed = grid, transposed
        self.changes: list[torch.Tensor] = []
        """By operation, float64."""

    def of(self, W: torch.Tensor) -> torch.Tensor:
        """The sample of a weight."""
        return self.grid.taken(W.T if self.transposed else W)


def apply_ops(
    module: ModuleName, ops: Sequence[Op], W: torch.Tensor, watched: Watched | None = None
) -> tuple[torch.Tensor, int, int]:
    """All ``ops`` on the weight ``W`` (d, k) float64; what each does is ``watched``.

    Returns
    -------
    The weight; the rank that PaRas of strength 1 took; the most that the rank of the change can be.

    Raises
    ------
    NonFiniteError
        NaN or Inf in an adapter.
    """
    removed = rank = 0
    for segment in _segments(ops):
        if isinstance(segment, FamilyOp):
            before = watched.of(W) if watched is not None else None
            W = torch.from_numpy(segment.module.apply(W.numpy(), segment.strength))
            if watched is not None and before is not None:
                watched.changes.append(watched.of(W) - before)
            bound = segment.module.rank_bound
            rank += min(W.shape) if bound is None else bound
            continue
        chain = load_chain(module, segment)
        basis = chain.basis
        change = chain.change(None if basis is None else basis.T @ W)
        if watched is not None:
            watched.changes += (
                [torch.zeros_like(watched.of(W))] * len(segment)
                if change is None
                else change.by_link(watched.grid, transposed=watched.transposed)
            )
        if change is not None:
            W = change.applied_to(W)
            removed, rank = removed + change.removed, rank + change.rank
    return W, removed, min(rank, *W.shape)


def _segments(ops: Sequence[Op]) -> Iterator[FamilyOp | tuple[Op, ...]]:
    """Steps that need the whole weight one by one, and the runs of others between them."""
    run: list[Op] = []
    for op in ops:
        if not (isinstance(op, FamilyOp) and op.module.depends_on_weight):
            run.append(op)
            continue
        if run:
            yield tuple(run)
            run = []
        yield op
    if run:
        yield tuple(run)


class Added:
    """The change of a layer beside its low-rank change, by blocks of the rows that are stored."""

    def __init__(self, links: Sequence[DeltaLink], transposed: bool) -> None:
        self._links = links
        self._columns: torch.Tensor | None = None
        if transposed:  # a stored row is a column of the change: all of it is needed
            rows = links[0].addition.shape[0]
            total = sum((link.rows(0, rows) for link in links[1:]), links[0].rows(0, rows))
            self._columns = _without_plus_zero(total.T.contiguous())

    def add_to(self, block: torch.Tensor, begin: int) -> None:
        """Add it to the stored rows from ``begin`` of the layer, in place."""
        if self._columns is not None:
            block += self._columns[begin : begin + len(block)]
            return
        for link in self._links:
            block += _without_plus_zero(link.rows(begin, begin + len(block)))


def _without_plus_zero(change: torch.Tensor) -> torch.Tensor:
    """``change`` with -0 for each 0, in place: a sum with -0 leaves every number as it is, -0 too."""
    return change.masked_fill_(change == 0, -0.0)


@dataclass(frozen=True, slots=True)
class LayerResult:
    """The outcome for one layer: the rank taken by PaRas of strength 1, and the rank of the whole change.

    ``survival`` is the part of it that is written; None where nothing of it was rounded.
    """

    name: str
    removed: int
    rank: int
    survival: LayerSurvival | None = None


class LayerInTensor:
    """The rows of one layer within the tensor that it is stored in."""

    rank: int
    removed: int
    probe: Probe
    """The comparison of its values with what is written of them."""
    is_one_addition = False
    """Whether its change is a single one, made row by row: the sum with it is measured, not made again."""

    def __init__(self, edit: Edit) -> None:
        target = edit.target
        shape = target.shape[::-1] if target.transposed else target.shape
        self._edit = edit
        self._start, self._stop = target.rows or (0, shape[0])

    @property
    def name(self) -> str:
        """The layer."""
        return str(self._edit.target.module)

    def result(self) -> LayerResult:
        """The outcome, when all its rows are written."""
        return LayerResult(self.name, self.removed, self.rank, self.probe.result(self.changes_by_op))

    def changes_by_op(self, grid: Grid) -> list[torch.Tensor]:
        """The sample of each operation's change of the rows as they are stored, float64."""
        raise NotImplementedError

    def new_probe(self, columns: int, dtype: str, compute: torch.dtype) -> Probe:
        """A comparison of what is written of it, as ``dtype``, with what was meant."""
        ops = self._edit.ops
        place = (self._start, self._stop - self._start, columns)
        floors = [_floor(op, self._edit.target.shape[0], dtype) for op in ops]
        return Probe(self.name, [op.steps for op in ops], floors, place, dtype, compute)

    def overlap(self, first_row: int, rows: int) -> tuple[int, int]:
        """This layer's rows among the next ``rows`` from ``first_row``, counted from there; maybe none."""
        start = min(max(self._start - first_row, 0), rows)
        return start, max(start, min(self._stop - first_row, rows))


def _floor(op: Op, rows: int, dtype: str) -> float:
    """The energy, relative to the weight's, that rounding to ``dtype`` leaves in the directions of a PaRa."""
    if not isinstance(op, ParaOp):
        return 0.0
    strength = max(part.strength for part in op.parts)
    roundoff = unit_roundoff(dtype) if is_float(dtype) else _OF_CODES
    return (strength * roundoff) ** 2 * min(op.rank, rows) / rows


class WholeLayer(LayerInTensor):
    """A layer that is held as a whole while its steps are worked out; takes the place of a streamed one."""

    must_look = True

    def __init__(self, edit: Edit) -> None:
        super().__init__(edit)
        self._held: torch.Tensor | None = None
        self.rank = self.removed = 0

    def look(self, block: torch.Tensor, row: int) -> None:
        """Keep ``block``, beginning at ``row`` of the tensor."""
        if self._held is None:
            self._held = torch.empty((self._stop - self._start, block.shape[1]), dtype=torch.float64)
        begin = row - self._start
        self._held[begin : begin + len(block)].copy_(block)

    def work_out(self) -> None:
        """Apply all steps."""
        if self._held is None:
            return
        target = self._edit.target
        W = self._held.T.contiguous() if target.transposed else self._held
        self._held = None
        self._watched = Watched(self.probe.grid, transposed=target.transposed)
        result, self.removed, self.rank = apply_ops(target.module, self._edit.ops, W, self._watched)
        torch.where(result == W, W, result, out=result)  # a zero that nothing changed keeps its sign
        self._held = result.T if target.transposed else result

    def changes_by_op(self, grid: Grid) -> list[torch.Tensor]:
        """The sample of each operation's change of the rows as they are stored, float64."""
        return self._watched.changes

    def changes(self, start: int, stop: int) -> bool:
        """Whether it changes rows ``start`` to ``stop``, which are wholly inside or outside of it."""
        return self._held is not None and self._start <= start and stop <= self._stop

    def add_to(self, block: torch.Tensor, row: int) -> None:
        """Replace ``block``, beginning at ``row`` of the tensor, by the result."""
        if self._held is not None:
            begin = row - self._start
            block.copy_(self._held[begin : begin + len(block)])
