"""All the steps on one layer as one low-rank change ``W + U V``.

Every step is either a PaRa, ``W -> W - Q S (Q^T W)`` (paper's equation 3 with a strength), or a LoRA,
``W -> W + s B A``. Both only ever add a product of thin matrices, so a whole chain needs of ``W`` nothing but
``C = Qs^T W``, with all its bases side by side in ``Qs``: one pass over the weight to collect ``C``, one to
add ``U V``, and a single rounding at the end, however many steps there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paramerge import algebra
from paramerge.adapters.changes import Change
from paramerge.adapters.contract import AdditiveModule
from paramerge.adapters.para import ParaModule, storage_cut
from paramerge.apply.operations import FamilyOp, LoraOp, Op, ParaOp, ParaPart
from paramerge.apply.sampling import Grid
from paramerge.models.names import ModuleName

FLOAT64 = torch.float64


@dataclass(frozen=True)
class ParaLink:
    """Removal of ``Q diag(weights) Q^T``: ``Q`` (d, m) orthonormal and ``weights`` (m,), both float64.

    ``limit`` is the rank boundary: how many directions may go (None: all ``m``).
    """

    Q: torch.Tensor
    weights: torch.Tensor
    limit: int | None = None


@dataclass(frozen=True)
class LoraLink:
    """Change of ``scale * B A``: ``B`` (d, r) and ``A`` (r, k), float64."""

    B: torch.Tensor
    A: torch.Tensor
    scale: float


@dataclass(frozen=True)
class DeltaLink:
    """Change of ``strength`` times something that is not of low rank but is known by its factors.

    ``rank`` is the most that its rank can be.
    """

    addition: Change
    strength: float
    rank: int

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of the change, float64."""
        return torch.from_numpy(self.addition.rows(start, stop)) * self.strength

    def seen_by(self, Q: torch.Tensor) -> torch.Tensor:
        """``Q^T`` of the change, by blocks of rows."""
        seen = torch.zeros((Q.shape[1], self.addition.shape[1]), dtype=FLOAT64)
        for start, block in self.addition.blocks():
            seen += Q[start : start + len(block)].T @ torch.from_numpy(block)
        return seen * self.strength


@dataclass(frozen=True)
class ChainChange:
    """A chain on one weight: ``W + up @ down + added``, ``up`` (d, m) and ``down`` (m, k), float64.

    ``removed`` is the rank that the PaRas of strength 1 take from a weight of full row rank.
    """

    up: torch.Tensor
    down: torch.Tensor
    removed: int
    added: tuple[DeltaLink, ...] = ()
    places: tuple[slice | DeltaLink, ...] = ()
    """By link, its columns of ``up`` (and rows of ``down``), or itself where it is one of ``added``."""

    @property
    def rank(self) -> int:
        """The most that the rank of the whole change can be, by the shapes of the factors."""
        rank = self.up.shape[1] + sum(link.rank for link in self.added)
        return min(rank, *self.added[0].addition.shape) if self.added else rank

    def applied_to(self, W: torch.Tensor) -> torch.Tensor:
        """The changed weight, for ``W`` (d, k) float64."""
        result = torch.addmm(W, self.up, self.down)
        for link in self.added:
            for start, block in link.addition.blocks():
                result[start : start + len(block)] += torch.from_numpy(block) * link.strength
        return result

    def by_link(self, grid: Grid, *, transposed: bool = False) -> list[torch.Tensor]:
        """The sample of each link's own part of the change, or of its transposed; float64."""
        return [self._part(place, grid, transposed) for place in self.places]

    def _part(self, place: slice | DeltaLink, grid: Grid, transposed: bool) -> torch.Tensor:
        if isinstance(place, DeltaLink):
            whole = place.rows(0, place.addition.shape[0])
            return grid.taken(whole.T if transposed else whole)
        up, down = self.up[:, place], self.down[place]
        return grid.of_product(down.T, up.T) if transposed else grid.of_product(up, down)


@dataclass(frozen=True)
class Chain:
    """The steps on one layer (or one view of a stored tensor), in their order."""

    module: ModuleName
    links: tuple[ParaLink | LoraLink | DeltaLink, ...]

    @property
    def basis(self) -> torch.Tensor | None:
        """All bases side by side, (d, R) float64; None when no step needs to see the weight."""
        bases = [link.Q for link in self.links if isinstance(link, ParaLink) and link.Q.shape[1]]
        return torch.cat(bases, dim=1) if bases else None

    def change(self, C: torch.Tensor | None) -> ChainChange | None:
        """The chain's change of the weight, for ``C`` = ``basis^T W`` (R, k).

        None when the chain leaves the layer as it is.
        """
        ups: list[torch.Tensor] = []
        downs: list[torch.Tensor] = []
        gone: list[torch.Tensor] = []
        added: list[DeltaLink] = []
        places: list[slice | DeltaLink] = []
        position = width = 0
        for link in self.links:
            if isinstance(link, DeltaLink):
                added.append(link)
                places.append(link)
                continue
            places.append(slice(width, width))
            if isinstance(link, LoraLink):
                ups.append(link.B * link.scale)
                downs.append(link.A)
                places[-1] = slice(width, width := width + len(link.A))
                continue
            rank = link.Q.shape[1]
            if rank == 0 or C is None:
                continue
            seen = C[position : position + rank]  # Q^T of the weight as it is at this step
            for up, down in zip(ups, downs, strict=True):
                seen = seen + (link.Q.T @ up) @ down
            for delta in added:
                seen = seen + delta.seen_by(link.Q)
            position += rank
            Q, weights, seen = _within_limit(link, seen, gone)
            ups.append(-Q * weights)
            downs.append(seen)
            places[-1] = slice(width, width := width + len(seen))
            gone.append(Q[:, weights == 1])
        if not ups and not added:
            return None
        if not ups:
            rows, columns = added[0].addition.shape
            ups, downs = [torch.zeros((rows, 0), dtype=FLOAT64)], [torch.zeros((0, columns), dtype=FLOAT64)]
        return ChainChange(
            torch.cat(ups, dim=1), torch.cat(downs, dim=0), _removed_rank(gone), tuple(added), tuple(places)
        )


def load_chain(module: ModuleName, ops: Sequence[Op]) -> Chain:
    """Read and prepare the adapters' tensors for one layer.

    Raises
    ------
    NonFiniteError
        NaN or Inf in an adapter.
    AdapterError
        A PaRa whose basis is zero.
    """
    return Chain(module, tuple(_load(op) for op in ops))


def _load(op: Op) -> ParaLink | LoraLink | DeltaLink:
    if isinstance(op, ParaOp):
        return load_para(op)
    return load_lora(op) if isinstance(op, LoraOp) else load_delta(op)


def load_delta(op: FamilyOp) -> DeltaLink:
    """The change of an additive family, with its own scale.

    Raises
    ------
    NonFiniteError
        NaN or Inf in a factor.
    """
    if not isinstance(op.module, AdditiveModule):
        raise TypeError(f"{op.module.name} depends on the weight and is no link of a chain")
    return DeltaLink(op.module.change(), op.strength, op.module.rank_bound)


def load_lora(op: LoraOp) -> LoraLink:
    """The LoRA's factors as float64, with ``alpha / rank`` and the user's scale in ``scale``."""
    B, A = (torch.from_numpy(factor).to(FLOAT64) for factor in op.module.factors())
    return LoraLink(B, A, op.module.scale * op.strength)


def load_para(op: ParaOp) -> ParaLink:
    """The joint (or single) orthonormal basis of the op's PaRas, made anew from the stored columns (T13)."""
    bases = load_bases(op)
    strengths = [part.strength for part in op.parts]
    if len(bases) == 1:
        Q, weights = bases[0], torch.full((bases[0].shape[1],), strengths[0], dtype=FLOAT64)
    else:
        Q, weights = algebra.graded_joint_basis(bases, strengths, rtol=joint_cut(op.parts))
    return ParaLink(Q, weights, op.limit)


def load_bases(op: ParaOp) -> list[torch.Tensor]:
    """The orthonormal basis of each of the op's PaRas, (d, r_i) float64."""
    return [orthonormal_basis(part.module) for part in op.parts]


def _within_limit(
    link: ParaLink, seen: torch.Tensor, gone: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``Q``, weights and ``Q^T W``; within a rank boundary, of the directions with most energy (T12).

    The boundary is that of the merge: with what is ``gone`` before, too, no more rank is removed.
    """
    limit, columns = link.limit, link.Q.shape[1]
    # right angles are told as far as half precision keeps them: a rank that is removed but for its rounding
    cut = algebra.storage_tolerance("float16", columns)
    whole = [*gone, link.Q[:, link.weights == 1]]
    if limit is None:
        return link.Q, link.weights, seen
    most = max(limit, _removed_rank(gone, cut))  # no boundary brings back what another one let go
    if columns <= limit and _removed_rank(whole, cut) <= most:
        return link.Q, link.weights, seen
    Q, weights, seen = _by_energy(link, seen)
    kept = min(limit, Q.shape[1])
    while kept and _removed_rank([*gone, Q[:, :kept][:, weights[:kept] == 1]], cut) > most:
        kept -= 1
    return Q[:, :kept], weights[:kept], seen[:kept]


def _removed_rank(gone: Sequence[torch.Tensor], rtol: float | None = None) -> int:
    """The rank that removing these spans one after the other takes from a weight of full row rank (T3r)."""
    spans = [Q for Q in gone if Q.shape[1]]
    if len(spans) < 2:
        return sum(Q.shape[1] for Q in spans)
    return algebra.removed_rank_sequential(spans, rtol=rtol)


def _by_energy(link: ParaLink, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate the basis, within each strength, so that its directions come by falling removed energy."""
    turned_Q, turned_seen, weights, energies = [], [], [], []
    for weight in torch.unique(link.weights):
        at = link.weights == weight
        U, S, Vh = torch.linalg.svd(seen[at], full_matrices=False)
        # a weight with fewer columns than directions has directions without energy: they are dropped
        turned_Q.append(link.Q[:, at] @ U)
        turned_seen.append(S[:, None] * Vh)
        weights.append(weight.expand(len(S)))
        energies.append(S * weight)
    order = torch.argsort(torch.cat(energies), descending=True, stable=True)
    return torch.cat(turned_Q, 1)[:, order], torch.cat(weights)[order], torch.cat(turned_seen)[order]


def orthonormal_basis(module: ParaModule) -> torch.Tensor:
    """The orthonormal basis (d, rank) of a PaRa's layer, float64; see :meth:`ParaModule.some_directions`."""
    Q: torch.Tensor = module.some_directions(torch.from_numpy)
    return Q


def joint_cut(parts: Sequence[ParaPart]) -> float:
    """Spans of several PaRas that are closer than this differ by the rounding of their storage alone (T4)."""
    return storage_cut(part.module for part in parts)
