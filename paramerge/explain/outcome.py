"""The outcome of adapters on one weight, in a given order and at given strengths, as a change by rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from paramerge import algebra
from paramerge.adapters import LayerModule, LoraModule, ParaModule
from paramerge.adapters.changes import Change, Difference, Product
from paramerge.adapters.contract import AdditiveModule
from paramerge.adapters.para import storage_cut
from paramerge.apply.chain import Chain, ChainChange, DeltaLink, LoraLink, ParaLink
from paramerge.explain.orders import Order
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class Sum(Change):
    """``sum f_i X_i`` of changes of one shape."""

    parts: tuple[tuple[float, Change], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d, k)``."""
        return self.parts[0][1].shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``."""
        return np.asarray(sum(factor * change.rows(start, stop) for factor, change in self.parts))


class Outcomes:
    """The outcomes of the candidates' modules on one layer, whose weight W is (d, k) float64.

    ``bases`` are the directions of the PaRas among them, (d, r) float64 orthonormal.
    """

    def __init__(
        self,
        name: ModuleName,
        modules: Mapping[int, LayerModule],
        bases: Mapping[int, np.ndarray],
        W: np.ndarray,
    ) -> None:
        self._name, self._modules = name, modules
        self._W = torch.from_numpy(W)
        self._bases = {place: torch.from_numpy(Q) for place, Q in bases.items()}
        self._read = {
            place: module.change() for place, module in modules.items() if isinstance(module, AdditiveModule)
        }

    def change(self, order: Order, strengths: Mapping[int, float]) -> Change:
        """``W' - W`` after the steps of ``order`` that this layer has."""
        W = self._W
        links: list[ParaLink | LoraLink | DeltaLink] = []
        for step in order:
            here = [place for place in step if place in self._modules]
            if not here:
                continue
            if here[0] in self._bases:
                links.append(self._projection(here, strengths))
            elif here[0] in self._read:
                links.append(self._addition(here[0], strengths[here[0]]))
            else:
                W = self._after(W, links)
                applied = self._modules[here[0]].apply(W.numpy(), strengths[here[0]])
                W, links = torch.from_numpy(applied), []
        if W is self._W:
            made = self._chained(W, links)
            return _as_change(made) if made is not None else Difference(np.zeros(W.shape))
        return Difference((self._after(W, links) - self._W).numpy())

    def derivative(self, order: Order, strengths: Mapping[int, float], place: int) -> Change:
        """The derivative of :meth:`change` by one strength, as a difference over a small step."""
        step = _STEP if strengths[place] < 0.5 else -_STEP  # within 0 to 1, where a PaRa's strength is
        moved = {**strengths, place: strengths[place] + step}
        before, after = self.change(order, strengths), self.change(order, moved)
        return Sum(((1 / step, after), (-1 / step, before)))

    def _projection(self, places: list[int], strengths: Mapping[int, float]) -> ParaLink:
        if len(places) == 1:
            Q = self._bases[places[0]]
            return ParaLink(Q, torch.full((Q.shape[1],), strengths[places[0]], dtype=Q.dtype))
        modules = [module for place in places if isinstance(module := self._modules[place], ParaModule)]
        within = [min(max(strengths[place], 0.0), 1.0) for place in places]
        bases = [self._bases[place] for place in places]
        return ParaLink(*algebra.graded_joint_basis(bases, within, rtol=storage_cut(modules)))

    def _addition(self, place: int, strength: float) -> LoraLink | DeltaLink:
        module, change = self._modules[place], self._read[place]
        if isinstance(module, LoraModule) and isinstance(change, Product):
            B, A = torch.from_numpy(change.B), torch.from_numpy(change.A)
            return LoraLink(B, A, change.scale * strength)
        return DeltaLink(change, strength, module.rank_bound or min(change.shape))

    def _chained(self, W: torch.Tensor, links: list[ParaLink | LoraLink | DeltaLink]) -> ChainChange | None:
        chain = Chain(self._name, tuple(links))
        basis = chain.basis
        return chain.change(None if basis is None else basis.T @ W)

    def _after(self, W: torch.Tensor, links: list[ParaLink | LoraLink | DeltaLink]) -> torch.Tensor:
        made = self._chained(W, links)
        return W if made is None else made.applied_to(W)


_STEP = 2.0**-10


def _as_change(made: ChainChange) -> Change:
    thin = Product(made.up.numpy(), made.down.numpy(), 1.0)
    if not made.added:
        return thin
    return Sum(((1.0, thin), *((link.strength, link.addition) for link in made.added)))
