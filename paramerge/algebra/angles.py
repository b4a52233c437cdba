"""The angles between two subspaces: principal angles, shared directions, the Friedrichs angle."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos
from typing import Generic

from paramerge.algebra.arrays import Array, detached, exact, number
from paramerge.algebra.decomposition import count_above
from paramerge.algebra.subspace import stack_bases

__all__ = ["SubspacePair", "compare_subspaces", "friedrichs_cosine", "principal_angles", "shared_dimension"]


@dataclass(frozen=True, slots=True)
class SubspacePair(Generic[Array]):
    """The angles between two subspaces, on which a merge of two PaRas depends.

    ``angles`` are the ``min(ranks)`` principal angles in radians, ascending, ``ranks`` the two dimensions,
    ``shared`` the number of directions in both, ``crossed`` the number of pairs of principal directions at
    right angles, and ``friedrichs_cosine`` the largest cosine of an angle that is not shared (0 if none).
    """

    angles: Array
    ranks: tuple[int, int]
    shared: int
    crossed: int
    friedrichs_cosine: float

    @property
    def joint_rank(self) -> int:
        """The rank that the joint merge removes: ``r1 + r2 - dim(V1 n V2)``."""
        return sum(self.ranks) - self.shared

    @property
    def sequential_rank(self) -> int:
        """The rank that the sequence removes, in either order: ``r1 + dim(V2 n V1^perp)``."""
        return max(self.ranks) + self.crossed


@exact
def compare_subspaces(Q1: Array, Q2: Array, *, rtol: float | None = None) -> SubspacePair[Array]:
    """Measure the angles between two subspaces, at the cost of one small SVD and one tall one.

    Angles above 45 degrees come from their cosines, the singular values of ``Q1^T Q2``; those below from
    their sines, the singular values of ``(I - Q1 Q1^T) Q2``, since a cosine does not distinguish angles under
    ``sqrt(eps)`` from 0 (Bjorck and Golub 1973; Knyazev and Argentati 2002).

    Parameters
    ----------
    Q1, Q2:
        (d, r1) and (d, r2); each is orthonormalised again first, so that any basis of the span will do.
    rtol:
        The cut for shared directions: those that :func:`joint_basis` merges at it (angles of up to about ``2
        * rtol``). A cosine of at most ``rtol`` is a right angle.

    Returns
    -------
    SubspacePair
        The angles in working precision.

    Raises
    ------
    ShapeError, NonFiniteError, UsageError
        As :func:`joint_basis`.
    """
    given = stack_bases([Q1, Q2], rtol)
    xp = given.xp
    larger, smaller = sorted(given.bases, key=lambda Q: -Q.shape[1])
    overlap = xp.matrix_transpose(larger) @ smaller
    cosines = xp.clip(xp.linalg.svdvals(overlap), 0.0, 1.0)
    sines = xp.clip(xp.flip(xp.linalg.svdvals(smaller - larger @ overlap), axis=0), 0.0, 1.0)
    wide = detached(cosines) ** 2 < 0.5
    # each function sees only what it is for: the gradient of acos at 1 is infinite, and 0 times that is NaN
    zero = xp.zeros_like(cosines)
    angles = xp.where(wide, xp.acos(xp.where(wide, cosines, zero)), xp.asin(xp.where(wide, zero, sines)))
    pairs = cosines.shape[0]
    # [Q1 Q2] has the singular values sqrt(2) cos(t/2) and sqrt(2) sin(t/2) for each principal angle t
    largest = cos(number(angles[0]) / 2) if pairs else 1.0
    shared = pairs - count_above(xp, xp.sin(detached(angles) / 2), given.cut, largest)
    return SubspacePair(
        angles=angles,
        ranks=(given.bases[0].shape[1], given.bases[1].shape[1]),
        shared=shared,
        crossed=pairs - count_above(xp, cosines, given.cut, 1.0),
        friedrichs_cosine=number(cosines[shared]) if shared < pairs else 0.0,
    )


@exact
def principal_angles(Q1: Array, Q2: Array) -> Array:
    """Measure the principal angles between two subspaces, in radians, ascending, accurate down to 0.

    Parameters and errors as :func:`compare_subspaces`.

    Returns
    -------
    Array
        ``min(r1, r2)`` angles from 0 to pi/2 (fewer for dependent columns), in working precision.
    """
    return compare_subspaces(Q1, Q2).angles


@exact
def shared_dimension(Q1: Array, Q2: Array, *, rtol: float | None = None) -> int:
    """Count the shared directions: ``dim(span(Q1) n span(Q2)) = r1 + r2 - dim(span(Q1) + span(Q2))``.

    Parameters and errors as :func:`compare_subspaces`.
    """
    return compare_subspaces(Q1, Q2, rtol=rtol).shared


@exact
def friedrichs_cosine(Q1: Array, Q2: Array, *, rtol: float | None = None) -> float:
    """Measure the cosine of the Friedrichs angle: the largest principal cosine of no shared direction.

    It is the error of merging two PaRas one after the other, ``||(I-P2)(I-P1) - (I-Pm)||_2``, and 0 exactly
    when the projectors commute (every principal angle 0 or 90 degrees).

    Parameters and errors as :func:`compare_subspaces`.

    Returns
    -------
    float
        From 0 to 1; 0 if every principal angle is 0, or there is none.
    """
    return compare_subspaces(Q1, Q2, rtol=rtol).friedrichs_cosine
