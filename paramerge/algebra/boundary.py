"""The rank boundary: how many directions a layer may lose, and which ones to keep (section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, Literal, cast

from paramerge.algebra.arrays import Array, detached, exact, prepare
from paramerge.algebra.para import numerical_rank, prepare_pair
from paramerge.algebra.subspace import joint_directions, orthonormalise, require_orthonormal, stack_bases
from paramerge.errors import UsageError

__all__ = ["Bounded", "adjusted_rank", "rank_boundary"]

Keep = Literal["energy", "consensus", "order"]
ROUNDOFF = Fraction(1, 2**53)


@dataclass(frozen=True, slots=True)
class Bounded(Generic[Array]):
    """A basis within the rank boundary.

    ``Q`` is (d, rank), ``columns`` the number of directions before the cut, ``limit`` is ``floor(gamma *
    rank(W))``. A ``rank`` of 0 means that the layer is left alone.
    """

    Q: Array
    rank: int
    columns: int
    limit: int

    @property
    def dropped(self) -> int:
        """Number of directions that the boundary left out."""
        return self.columns - self.rank


def adjusted_rank(r: int, gamma: float | Fraction, rank_W: int) -> int:
    """Cap a rank: the paper's ``r_adjust = min(r, floor(gamma * rank(W0)))`` (section 3.2).

    A float ``gamma`` stands for any number within half a unit in its last place, so a product that close
    to an integer is that integer: 0.29 * 100 is 29, though in floating point it is 28.999999999999996, and
    (1/3) * 3 is 1. A :class:`~fractions.Fraction` is taken exactly.

    Parameters
    ----------
    r:
        The rank asked for, 0 or more.
    gamma:
        The rank boundary, 0 to 1; the paper uses 1/40.
    rank_W:
        ``rank(W0)``, 0 or more; ``min(d, k)`` for a weight of full rank.

    Returns
    -------
    int
        May be 0: then the layer is left alone.

    Raises
    ------
    UsageError
        A negative rank, or ``gamma`` outside [0, 1] (also NaN).
    """
    for name, rank in (("r", r), ("rank_W", rank_W)):
        if rank < 0:
            raise UsageError(
                "a rank is negative",
                where=name,
                expected="0 or more",
                found=rank,
                hint="rank 0 leaves a layer alone",
            )
    if not 0 <= gamma <= 1:
        raise UsageError(
            "the rank boundary is out of range",
            where="gamma",
            expected="0 to 1",
            found=gamma,
            hint="the paper uses 1/40; 1 removes up to the whole rank",
        )
    product = Fraction(gamma) * rank_W
    nearest = round(product)
    slack = ROUNDOFF * product if isinstance(gamma, float) else Fraction(0)
    limit = nearest if abs(product - nearest) <= slack else product.__floor__()
    return min(r, limit)


@exact
def rank_boundary(
    Q: Array | Sequence[Array],
    gamma: float | Fraction,
    W: Array | None = None,
    *,
    keep: Keep = "energy",
    rank_W: int | None = None,
    rtol: float | None = None,
) -> Bounded[Array]:
    """Cut a basis, or the joint basis of several, to the rank boundary.

    The paper says that the boundary matters most for merged adapters and gives no rule for which directions
    to keep; these are ours:

    - ``"energy"``: the directions of the span that take most out of ``W``. The basis is rotated by the left
      singular vectors of ``Q^T W``, so no other choice of as many directions in the span removes more.
    - ``"consensus"``: the directions that most of the bases share, by the singular values of ``[Q1 ... Qn]``.
    - ``"order"``: the first columns, for several bases those of the first basis, then the second's additions.

    Parameters
    ----------
    Q:
        One (d, r) with orthonormal columns, or a sequence of (d, r_i), which are orthonormalised again.
    gamma:
        As for :func:`adjusted_rank`.
    W:
        (d, ...), two or more axes. Needed for ``"energy"``, and where ``rank_W`` is not given.
    keep:
        The choice of directions; only matters where some must go. A span within the boundary comes back with
        its basis as it was (for several: the joint basis, or that in order).
    rank_W:
        The rank of ``W``, by default :func:`numerical_rank` of it (a whole SVD).
    rtol:
        For several bases, as for :func:`joint_basis`.

    Returns
    -------
    Bounded
        In torch its ``Q`` has the gradient of the basis that was given; the choice itself carries none.

    Raises
    ------
    UsageError
        An unknown ``keep``, ``W`` missing where it is needed, ``"consensus"`` for a single basis.
    ShapeError
        Shapes do not fit.
    """
    if keep not in ("energy", "consensus", "order"):
        raise UsageError(
            "unknown way to choose directions",
            where="keep",
            expected="energy, consensus or order",
            found=keep,
            hint="energy keeps directions that remove most of W, consensus the most shared, order the first",
        )
    basis = _ordered_basis(Q, keep, rtol)
    if rank_W is None:
        if W is None:
            raise _missing_weight("rank_W")
        rank_W = numerical_rank(W)
    columns = basis.shape[1]
    possible = basis.shape[0] if W is None else min(W.shape[0], math.prod(W.shape[1:]))
    if rank_W > possible:
        raise UsageError(
            "the rank is larger than a weight of this shape can have",
            where="rank_W",
            expected=f"at most {possible}",
            found=rank_W,
            hint="pass the rank of the flattened weight, or leave it out and pass W",
        )
    limit = adjusted_rank(rank_W, gamma, rank_W)  # gamma is at most 1, so the minimum is the floor
    rank = min(columns, limit)
    if rank < columns and keep == "energy":
        if W is None:
            raise _missing_weight("keep")
        basis = _by_energy(basis, W)
    return Bounded(basis[:, :rank], rank, columns, limit)


def _ordered_basis(Q: Any, keep: str, rtol: float | None) -> Any:
    if not isinstance(Q, Sequence):
        if keep == "consensus":
            raise UsageError(
                "a single basis was given, and a consensus needs several",
                where="keep",
                expected="several bases, one for each adapter",
                found="one basis",
                hint="pass the bases before they were merged, or keep by energy or order",
            )
        require_orthonormal(Q)
        return prepare({"Q": Q}).arrays[0]
    given = stack_bases(Q, rtol)
    if keep == "order":
        stacked = given.xp.concat(list(given.bases), axis=1)
        return orthonormalise(stacked, rtol=given.cut, method="gram-schmidt").Q
    return joint_directions(given.xp, given.bases, given.cut)[0]


def _by_energy(basis: Any, W: Any) -> Any:
    """Rotate a basis so that each column removes as much of ``W`` as its predecessors left possible."""
    prepared = prepare_pair(basis, W)
    xp, (Q, weight) = prepared.xp, prepared.arrays
    flat = xp.reshape(weight, (weight.shape[0], -1))
    U, _, _ = xp.linalg.svd(xp.matrix_transpose(detached(Q)) @ detached(flat), full_matrices=False)
    return cast(Any, Q @ U)


def _missing_weight(where: str) -> UsageError:
    return UsageError(
        "no weight was given to place the rank boundary by",
        where=where,
        expected="W",
        found="no W",
        hint="pass the weight, or rank_W and another way to keep",
    )
