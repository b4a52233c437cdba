"""Several PaRas on one weight: the joint merge, the sequence, and the exact distance of the two.

The paper (section 3.2 and appendix A) takes the sequence ``(I - P2)(I - P1) W`` for the joint merge ``(I -
Pm) W``. They are equal when the projectors commute, and otherwise differ by the cosine of the Friedrichs
angle. Everything is computed in coordinates of the joint basis: no d x d matrix is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat

from paramerge.algebra.arrays import Array, column_cut, exact, number, prepare, prepare_matrices
from paramerge.algebra.decomposition import count_above, leading_directions
from paramerge.algebra.para import reduce
from paramerge.algebra.subspace import BasisStack, joint_basis, joint_directions, stack_bases
from paramerge.errors import UsageError

__all__ = [
    "graded_joint_basis",
    "iterate_sequential",
    "removed_rank_joint",
    "removed_rank_sequential",
    "sequential_error",
]


@exact
def graded_joint_basis(
    bases: Sequence[Array], strengths: Sequence[float], *, rtol: float | None = None
) -> tuple[Array, Array]:
    """Merge adapters of different strengths, whatever their order: the operator ``I - Q diag(w) Q^T``.

    With ``V(s)`` the joint span of all adapters of strength s or more, the operator is
    ``I - sum_k s_k (P_V(s_k) - P_V(s_{k-1}))`` over the distinct strengths descending, with nothing in
    ``V(s_0)``: a direction goes with the strongest adapter that has it. Equal strengths give ``I - s Pm``;
    orthogonal spans give the product of the single operators exactly. (Our extension: the paper merges at
    strength 1 only.)

    Parameters
    ----------
    bases:
        At least one (d, r_i); orthonormalised again first.
    strengths:
        One for each basis, from 0 to 1. An adapter of strength 0 takes no part.
    rtol:
        As for :func:`joint_basis`.

    Returns
    -------
    Q:
        (d, m) with orthonormal columns.
    weights:
        (m,), descending: the strength of each column.

    Raises
    ------
    UsageError
        Numbers of bases and strengths differ, or a strength outside [0, 1].
    ShapeError, NonFiniteError
        As :func:`joint_basis`.
    """
    given = stack_bases(bases, rtol)
    _check_strengths(bases, strengths)
    graded: tuple[Array, Array] = _graded(given, strengths)
    return graded


@exact
def sequential_error(
    bases: Sequence[Array], strengths: Sequence[float] | None = None, *, rtol: float | None = None
) -> float:
    """Measure how far the sequence is from the joint merge: ``||(I-Pn)...(I-P1) - (I-Pm)||_2``, 0 to 1.

    For two adapters it is the cosine of their Friedrichs angle (:func:`friedrichs_cosine`), so 0 exactly
    when the projectors commute; for any ``W`` the two merges differ by at most this times ``||W||``.

    With strengths it is ``||(I-s_n P_n)...(I-s_1 P_1) - (I - Q diag(w) Q^T)||_2`` with the joint merge of
    :func:`graded_joint_basis`. Then commuting is not enough: a direction that two adapters share goes with
    the stronger once in the joint merge, and with both in the sequence (for equal ones at strength s the
    distance is ``s (1 - s)``). It is 0 for orthogonal spans.

    Parameters
    ----------
    bases:
        At least one (d, r_i), the first applied first; orthonormalised again first.
    strengths:
        One for each basis, from 0 to 1; all 1 by default.
    rtol:
        As for :func:`joint_basis`.

    Raises
    ------
    UsageError
        As :func:`graded_joint_basis`.
    ShapeError, NonFiniteError
        As :func:`joint_basis`.
    """
    given = stack_bases(bases, rtol)
    if strengths is None:
        strengths = [1.0] * len(bases)
    _check_strengths(bases, strengths)
    xp = given.xp
    J, product = _sequence_on_joint_span(given, strengths)
    Q, weights = _graded(given, strengths)
    C = xp.matrix_transpose(J) @ Q
    joint = xp.eye(J.shape[1], dtype=J.dtype, device=array_api_compat.device(J))
    joint = joint - (C * weights) @ xp.matrix_transpose(C)
    singular_values = xp.linalg.svdvals(product - joint)
    return number(singular_values[0]) if singular_values.shape[0] else 0.0


@exact
def removed_rank_joint(bases: Sequence[Array], *, rtol: float | None = None) -> int:
    """Count the rank that the joint merge removes from a ``W`` of full row rank: ``dim(V1 + ... + Vn)``.

    For two: ``r1 + r2 - dim(V1 n V2)``. For a ``W`` of lower rank see :func:`removed_rank`.
    """
    return joint_basis(bases, rtol=rtol).rank


@exact
def removed_rank_sequential(bases: Sequence[Array], *, rtol: float | None = None) -> int:
    """Count the rank that the sequence removes from a ``W`` of full row rank.

    For two: ``r1 + dim(V2 n V1^perp)``, which for generic pairs is only ``max(r1, r2)``: less than the paper
    says, since the second step acts on the weight that the first left, where its directions are bent.

    ``rtol`` as for :func:`joint_basis`; a cosine of at most ``rtol`` counts as a right angle.
    """
    given = stack_bases(bases, rtol)
    _, product = _sequence_on_joint_span(given, [1.0] * len(bases))
    kept = given.xp.linalg.svdvals(product)
    return int(kept.shape[0]) - count_above(given.xp, kept, given.cut, 1.0)


@exact
def iterate_sequential(bases: Sequence[Array], W: Array, times: int = 1) -> Array:
    """Apply the whole sequence ``times`` times: ``((I-Pn)...(I-P1))^times W``.

    Once is the paper's "sequential addition" (section 3.2). Repeated, it converges to the joint merge; for
    two adapters with Friedrichs cosine c the distance is ``c^(2 times - 1)`` (Kayalar and Weinert 1988).

    Parameters
    ----------
    bases:
        At least one (d, r_i), the first applied first; orthonormalised again first.
    W:
        (d, ...), two or more axes.
    times:
        0 or more.

    Raises
    ------
    UsageError
        ``times`` is negative.
    ShapeError, NonFiniteError
        As :func:`joint_basis` and :func:`reduce`.
    """
    if times < 0:
        raise UsageError(
            "the number of rounds of a sequence is negative",
            where="times",
            expected="0 or more",
            found=times,
            hint="pass 0 to leave the weight as it is",
        )
    named = {f"bases[{i}]": basis for i, basis in enumerate(bases)}
    stored = prepare_matrices(named)
    cut = max(column_cut(basis.shape, stored) for basis in bases)  # not that of a W of another dtype
    result, *widened = prepare({"W": W, **named}).arrays
    given = stack_bases(widened, cut)
    result = reduce(result, given.bases[0][:, :0])  # checks W even for 0 times
    for _ in range(times):
        for basis in given.bases:
            result = reduce(result, basis)
    reduced: Array = result
    return reduced


def _check_strengths(bases: Sequence[Any], strengths: Sequence[float]) -> None:
    if len(strengths) != len(bases):
        raise UsageError(
            "the numbers of strengths and bases differ",
            where="strengths",
            expected=len(bases),
            found=len(strengths),
            hint="pass one strength for each basis",
        )
    for i, strength in enumerate(strengths):
        if not 0.0 <= strength <= 1.0:
            raise UsageError(
                "a strength is out of range for a joint merge",
                where=f"strengths[{i}]",
                expected="0 to 1",
                found=strength,
                hint="for other strengths apply the adapters one after the other with reduce",
            )


def _graded(given: BasisStack, strengths: Sequence[float]) -> tuple[Any, Any]:
    """The columns and weights of :func:`graded_joint_basis`, level by level from the strongest."""
    xp = given.xp
    Q = given.bases[0][:, :0]
    weights = xp.zeros_like(Q[0, :])
    for level in sorted({s for s in strengths if s > 0}, reverse=True):
        at_level = [basis for basis, s in zip(given.bases, strengths, strict=True) if s == level]
        fresh = _fresh_directions(xp, Q, at_level, given.cut)
        Q = xp.concat([Q, fresh], axis=1)
        weights = xp.concat([weights, level * xp.ones_like(fresh[0, :])])
    return Q, weights


def _fresh_directions(xp: Any, Q: Any, bases: list[Any], cut: float) -> Any:
    """Directions of the bases' joint span that ``span(Q)`` does not have yet."""
    joint, _ = joint_directions(xp, bases, cut)
    if Q.shape[1] == 0:
        return joint
    rest = joint - Q @ (xp.matrix_transpose(Q) @ joint)
    fresh, _ = leading_directions(xp, rest, cut, 2.0)  # sin t > 2 cut; joint_basis merges up to sin t/2
    fresh = fresh - Q @ (xp.matrix_transpose(Q) @ fresh)  # dividing by a small s magnified the rounding
    return xp.linalg.qr(fresh)[0]


def _sequence_on_joint_span(given: BasisStack, strengths: Sequence[float]) -> tuple[Any, Any]:
    """The joint basis J, and ``(I - s_n P_n)...(I - s_1 P_1)`` in coordinates of it; elsewhere it is I.

    In these coordinates the projector of Q is ``C C^T`` with ``C = J^T Q``.
    """
    xp = given.xp
    J, _ = joint_directions(xp, given.bases, given.cut)
    product = xp.eye(J.shape[1], dtype=J.dtype, device=array_api_compat.device(J))
    for Q, strength in zip(given.bases, strengths, strict=True):
        C = xp.matrix_transpose(J) @ Q
        product = product - strength * (C @ (xp.matrix_transpose(C) @ product))
    return J, product
