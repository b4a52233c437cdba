"""How two subspaces lie to each other: principal angles, shared directions, the Friedrichs angle."""

from __future__ import annotations

from paramerge.algebra.arrays import Array, number
from paramerge.algebra.subspace import joint_directions, stack_bases

__all__ = ["friedrichs_cosine", "principal_angles", "shared_dimension"]


def principal_angles(Q1: Array, Q2: Array) -> Array:
    """Measure the principal angles between ``span(Q1)`` and ``span(Q2)``, in radians, ascending.

    Angles above 45 degrees come from their cosines, the singular values of ``Q1^T Q2``; those below from
    their sines, the singular values of ``(I - Q1 Q1^T) Q2``, since a cosine cannot tell angles under
    ``sqrt(eps)`` from 0 (Bjorck and Golub 1973; Knyazev and Argentati 2002).

    Parameters
    ----------
    Q1, Q2:
        (d, r1) and (d, r2); each is orthonormalised again first, so that any basis of the span will do.

    Returns
    -------
    Array
        ``min(r1, r2)`` angles from 0 to pi/2 (fewer for dependent columns), in working precision.

    Raises
    ------
    ShapeError, NonFiniteError, UsageError
        As :func:`joint_basis`.
    """
    given = stack_bases([Q1, Q2], None)
    xp = given.xp
    larger, smaller = sorted(given.bases, key=lambda Q: -Q.shape[1])
    overlap = xp.matrix_transpose(larger) @ smaller
    cosines = xp.clip(xp.linalg.svdvals(overlap), 0.0, 1.0)
    sines = xp.clip(xp.flip(xp.linalg.svdvals(smaller - larger @ overlap), axis=0), 0.0, 1.0)
    angles: Array = xp.where(cosines**2 < 0.5, xp.acos(cosines), xp.asin(sines))
    return angles


def shared_dimension(Q1: Array, Q2: Array, *, rtol: float | None = None) -> int:
    """Count the shared directions: ``dim(span(Q1) n span(Q2)) = r1 + r2 - dim(span(Q1) + span(Q2))``.

    Parameters and errors as :func:`joint_basis`, whose cut also says here which directions are one.
    """
    given = stack_bases([Q1, Q2], rtol)
    joint, _ = joint_directions(given.xp, given.bases, given.cut)
    return int(sum(Q.shape[1] for Q in given.bases) - joint.shape[1])


def friedrichs_cosine(Q1: Array, Q2: Array, *, rtol: float | None = None) -> float:
    """Measure the cosine of the Friedrichs angle: the largest principal cosine of no shared direction.

    It is what merging two PaRas one after the other gets wrong, ``||(I-P2)(I-P1) - (I-Pm)||_2``, and 0
    exactly when the projectors commute (every principal angle 0 or 90 degrees).

    Parameters and errors as :func:`joint_basis`, whose cut also says here which directions are shared.

    Returns
    -------
    float
        From 0 to 1; 0 if every principal angle is 0, or there is none.
    """
    shared = shared_dimension(Q1, Q2, rtol=rtol)
    given = stack_bases([Q1, Q2], rtol)
    cosines = given.xp.linalg.svdvals(given.xp.matrix_transpose(given.bases[0]) @ given.bases[1])
    return min(1.0, number(cosines[shared])) if shared < cosines.shape[0] else 0.0
