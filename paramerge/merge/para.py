"""PaRa + PaRa -> PaRa: the joint basis of each layer, within the rank boundary (section 3.2, T4 and T12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from paramerge import algebra
from paramerge.adapters import ParaModule
from paramerge.adapters.para import storage_cut
from paramerge.errors import UsageError
from paramerge.merge.request import CombineOptions, KeepChoice
from paramerge.models.names import ModuleName
from paramerge.resolve.weights import BaseWeights, LayerShapes
from paramerge.wording import option


@dataclass(frozen=True)
class JointLayer:
    """The merged basis of one layer.

    Attributes
    ----------
    Q:
        (d, rank) float64 with orthonormal columns; no columns where the boundary leaves none.
    ranks:
        The true rank of each input's basis; 0 where an input has no such layer.
    joint_rank:
        ``dim(span(Q1) + ... + span(Qn))``, before any boundary.
    limit:
        The rank that ``gamma`` and ``rank`` allow; None without either.
    dependent:
        The number of stored columns that were no directions of their own.
    kept_energy:
        The share of ``||Qm^T W0||^2`` that the kept directions still remove; None where no base was read.
    """

    name: ModuleName
    Q: np.ndarray
    ranks: tuple[int, ...]
    joint_rank: int
    limit: int | None
    dependent: int
    kept_energy: float | None = None

    @property
    def rank(self) -> int:
        """Directions that the merged layer removes."""
        return int(self.Q.shape[1])


def chosen_keep(options: CombineOptions, base: BaseWeights | None) -> KeepChoice:
    """The choice of directions: as asked, else by energy where there is a base, else by consensus.

    Raises
    ------
    UsageError
        Energy without a base.
    """
    if options.keep == "energy" and base is None:
        raise UsageError(
            "no base was given, and what a direction removes depends on its weights",
            where=option("keep", "energy"),
            expected=option("base"),
            hint=f"give {option('base')}, or choose with {option('keep', 'consensus')} or "
            f"{option('keep', 'order')}",
        )
    if options.keep is not None:
        return options.keep
    return "energy" if base is not None else "consensus"


def join_layer(
    modules: Mapping[int, ParaModule],
    count: int,
    options: CombineOptions,
    base: BaseWeights | None,
    shapes: LayerShapes,
) -> JointLayer:
    """Merge one layer of ``count`` inputs; ``modules`` are those that have it, by the input's place.

    Raises
    ------
    AdapterError
        A basis of zeros.
    NonFiniteError
        NaN or Inf in a basis.
    UsageError
        The boundary needs a base (see :class:`LayerShapes` and :func:`chosen_keep`).
    """
    first = next(iter(modules.values()))
    bases = [module.some_directions() for module in modules.values()]
    ranks = [0] * count
    for place, Q in zip(modules, bases, strict=True):
        ranks[place] = Q.shape[1]
    dependent = sum(module.rank for module in modules.values()) - sum(ranks)
    rtol = storage_cut(modules.values())
    joint = bases[0] if len(bases) == 1 else algebra.joint_basis(bases, rtol=rtol).Q
    limit = _limit(options, shapes, first)
    if limit is None or limit >= joint.shape[1]:
        return JointLayer(first.name, joint, tuple(ranks), joint.shape[1], limit, dependent)
    keep = chosen_keep(options, base)
    W = base.matrix(first.name) if base is not None and limit else None
    Q = _bounded(bases, joint, limit, keep, W if keep == "energy" else None, rtol)
    share = None if W is None else _energy_share(Q, joint, W)
    return JointLayer(first.name, Q, tuple(ranks), joint.shape[1], limit, dependent, share)


def _limit(options: CombineOptions, shapes: LayerShapes, module: ParaModule) -> int | None:
    limits = [] if options.rank is None else [options.rank]
    if options.gamma is not None:
        full = shapes.full_rank(module.name, module.out_features)
        limits.append(algebra.adjusted_rank(full, options.gamma, full))
    return min(limits, default=None)


def _bounded(
    bases: Sequence[np.ndarray],
    joint: np.ndarray,
    limit: int,
    keep: KeepChoice,
    W: np.ndarray | None,
    rtol: float,
) -> np.ndarray:
    """``limit`` directions of the joint span. The boundary is given as an exact share of the layer's rows."""
    if limit == 0 or keep == "consensus":
        return joint[
            :, :limit
        ]  # a joint basis begins with directions that most bases share, a single one as stored
    rows = joint.shape[0] if W is None else min(W.shape)
    gamma = Fraction(min(limit, rows), rows)
    many = list(bases) if keep == "order" and len(bases) > 1 else joint
    return algebra.rank_boundary(many, gamma, W, keep=keep, rank_W=rows, rtol=rtol).Q


def _energy_share(Q: np.ndarray, joint: np.ndarray, W: np.ndarray) -> float:
    whole = float(np.sum((joint.T @ W) ** 2))
    return float(np.sum((Q.T @ W) ** 2)) / whole if whole else 1.0
