"""The steps on one weight that is in memory, on whichever device it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from paramerge.apply.chain import Chain, load_chain
from paramerge.apply.dense import apply_ops
from paramerge.apply.operations import Edit, Op, ParaOp

_KEPT_BYTES = 1 << 20


class LoadedEdits:
    """The edits of one stored tensor, to be made as often as it is loaded.

    Chains that need only ``Q^T W`` of the weight run on its device in its dtype, float32 or better; thin
    factors alone are worked out in float64, on the CPU. Steps that need the whole weight run there wholly.
    """

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = tuple(edits)
        self._chains: dict[tuple[int, float], Chain] = {}

    @property
    def edits(self) -> tuple[Edit, ...]:
        """One for each layer that the tensor holds."""
        return self._edits

    def change(self, weight: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        """``weight`` as its steps leave it, each with ``factor`` times its strength.

        Parameters
        ----------
        weight:
            The stored tensor, in any float dtype and on any device; it is left as it is.

        Raises
        ------
        NonFiniteError
            NaN or Inf in an adapter.
        AdapterError
            A PaRa whose basis is zero.
        """
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        result = weight.to(wide, copy=True).reshape(len(weight), -1)
        for place, edit in enumerate(self._edits):
            start, stop = edit.target.rows or (0, len(result))
            part = result[start:stop]
            layer = part.T if edit.target.transposed else part
            layer.copy_(self._changed(place, edit, layer, factor))
        return result.reshape(weight.shape).to(weight.dtype)

    def _changed(self, place: int, edit: Edit, W: torch.Tensor, factor: float) -> torch.Tensor:
        if edit.needs_whole:
            ops = scaled(edit.ops, factor)
            return apply_ops(edit.target.module, ops, W.to("cpu", torch.float64).contiguous())[0].to(W)
        chain = self._chain(place, edit, factor)
        basis = chain.basis
        seen = None if basis is None else (basis.to(W).T @ W).to("cpu", torch.float64)
        change = chain.change(seen)
        if change is None:
            return W
        if change.added:
            return change.applied_to(W.to("cpu", torch.float64)).to(W)
        return torch.addmm(W, change.up.to(W), change.down.to(W))

    def _chain(self, place: int, edit: Edit, factor: float) -> Chain:
        """The chain of a layer; thin ones are kept, as a weight that is not kept is changed at each use."""
        found = self._chains.get((place, factor))
        if found is None:
            found = load_chain(edit.target.module, scaled(edit.ops, factor))
            if sum(op.numbers for op in edit.ops) * 8 <= _KEPT_BYTES:
                self._chains = {key: kept for key, kept in self._chains.items() if key[0] != place}
                self._chains[place, factor] = found
        return found


def scaled(ops: Sequence[Op], factor: float) -> tuple[Op, ...]:
    """The operations with ``factor`` times their strengths."""
    if factor == 1:
        return tuple(ops)
    return tuple(_scaled(op, factor) for op in ops)


def _scaled(op: Op, factor: float) -> Op:
    if isinstance(op, ParaOp):
        return replace(op, parts=tuple(replace(part, strength=part.strength * factor) for part in op.parts))
    return replace(op, strength=op.strength * factor)
