"""Adapters of any family at one layer, compared by the changes they make, as dense matrices.

The comparison is of what every family has: norms, the signed cosine, and a PaRa's share of the other. A
family whose change depends on the weight is compared by its change of a base's own weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paramerge.adapters import LayerModule, ParaModule
from paramerge.adapters.registry import label
from paramerge.compare.pairs import MixedPair, relation_of
from paramerge.errors import FamilyError
from paramerge.models.names import ModuleName
from paramerge.wording import option


@dataclass(frozen=True)
class ChangePair:
    """Two adapters of any families but PaRa, with the changes ``D1`` and ``D2``.

    Attributes
    ----------
    ranks:
        The most that the ranks of the changes can be.
    norms:
        Their Frobenius norms.
    cosine:
        ``<D1, D2> / (||D1|| ||D2||)``, -1 to 1: above 0 they reinforce each other, below 0 they cancel.
    """

    name: ModuleName
    ranks: tuple[int, int]
    norms: tuple[float, float]
    cosine: float

    @property
    def relation(self) -> str:
        """``reinforce``, ``cancel`` or ``independent``."""
        return relation_of(self.cosine)


def compare_changes(
    name: ModuleName, first: LayerModule, second: LayerModule, W: np.ndarray | None
) -> ChangePair:
    """Compare two changes to one weight; ``W`` is the base's (d, k), where there is one.

    Raises
    ------
    FamilyError
        One depends on the weight, and there is none.
    NonFiniteError
        NaN or Inf in an adapter.
    """
    D1, D2 = _change(first, W), _change(second, W)
    norms = float(np.linalg.norm(D1)), float(np.linalg.norm(D2))
    scale = norms[0] * norms[1]
    cosine = float(np.sum(D1 * D2)) / scale if scale else 0.0
    return ChangePair(name, (_rank(first, D1), _rank(second, D2)), norms, cosine)


def compare_with_para(
    name: ModuleName, para: ParaModule, other: LayerModule, W: np.ndarray | None
) -> MixedPair:
    """The share of another adapter's change that a PaRa after it takes; raises as :func:`compare_changes`."""
    Q = para.directions().Q
    change = _change(other, W)
    norm, met = float(np.linalg.norm(change)), float(np.linalg.norm(Q.T @ change))
    refilled = None
    if W is not None:
        removed = float(np.linalg.norm(Q.T @ W))
        refilled = met / removed if removed else 0.0
    return MixedPair(
        name=name,
        ranks=(Q.shape[1], _rank(other, change)),
        norm=norm,
        lost=min(1.0, met / norm) if norm else 0.0,
        chance=math.sqrt(Q.shape[1] / len(Q)),
        refilled=refilled,
    )


def _change(module: LayerModule, W: np.ndarray | None) -> np.ndarray:
    if W is not None:
        return module.delta(W)
    if module.depends_on_weight:
        raise FamilyError(
            f"no base was given, and what {label(module.family)} changes depends on its weights",
            where=module.name,
            expected="a base to compare on",
            found="adapters alone",
            hint=f"add {option('base', 'model.safetensors')}",
        )
    return module.delta(np.zeros((1, 1)))  # an additive family looks at no weight


def _rank(module: LayerModule, change: np.ndarray) -> int:
    full = int(min(change.shape))
    return full if module.rank_bound is None else min(module.rank_bound, full)
