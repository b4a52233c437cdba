"""Column spaces: an orthonormal basis of one, the joint basis of several, and the true ranks of both.

A PaRa adapter *is* a subspace: the paper's ``B = QR`` (section 3.1, equation 2) keeps only ``span(B)``.
So every function here reports how many directions there really are, and never invents one: plain QR of
dependent columns turns their rounding noise into unit vectors that no adapter chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal

import array_api_compat
import numpy as np

from paramerge.algebra.arrays import (
    Array,
    check_relative_cut,
    column_cut,
    detached,
    exact,
    number,
    orthonormal_bound,
    prepare_matrices,
)
from paramerge.algebra.decomposition import count_above, leading_directions, positive_diagonal
from paramerge.errors import ShapeError, UsageError

__all__ = [
    "JointBasis",
    "Orthonormal",
    "joint_basis",
    "orthonormalise",
    "require_full_rank",
    "require_orthonormal",
]

Method = Literal["qr", "gram-schmidt"]


@dataclass(frozen=True, slots=True)
class Orthonormal(Generic[Array]):
    """An orthonormal basis of a column space.

    ``Q`` is (d, rank) with orthonormal columns, ``columns`` is how many columns were given; their
    difference is how many were dependent.
    """

    Q: Array
    rank: int
    columns: int

    @property
    def deficiency(self) -> int:
        """Number of given columns that added no direction of their own."""
        return self.columns - self.rank


@dataclass(frozen=True, slots=True)
class JointBasis(Generic[Array]):
    """An orthonormal basis of ``span(Q1) + ... + span(Qn)``, the directions shared by most first.

    ``Q`` is (d, rank). ``singular_values`` are all those of ``[Q1 ... Qn]``, descending: a direction that k
    bases share has ``sqrt(k)``, one that belongs to a single basis 1, and one that rounding alone makes is
    below the cut and not in ``Q``. In torch ``Q`` has the gradient of the span, the singular values have
    none.
    """

    Q: Array
    singular_values: Array
    rank: int


@exact
def orthonormalise(B: Array, *, rtol: float | None = None, method: Method = "qr") -> Orthonormal[Array]:
    """Find an orthonormal basis of ``span(B)``: the ``Q`` of the paper's ``B = QR`` (section 3.1).

    The rank is decided on columns scaled to norm 1, so that neither the scale of ``B`` nor that of one of
    its columns counts (1e-8 beside 1e8 is fine); a column of zeros adds nothing. The result depends on
    ``span(B)`` alone (``B -> B G``) as long as the scaled columns of ``B G`` are independent to working
    precision, that is, while their condition number is below ``1 / rtol``.

    ``B`` of zeros has no column space: the answer has rank 0 and no columns. Plain QR would return r
    arbitrary unit vectors, remove r arbitrary channels of the layer, and have a gradient of NaN; so the
    paper's "initialise B to zero" cannot run, and one column of zeros is enough to break it. Use
    :func:`require_full_rank` where directions must not go missing, as at the start of a training.

    Parameters
    ----------
    B:
        (d, r), any real floating dtype; half precision is worked on, and returned, in float32.
    rtol:
        The cut for dependent columns: for ``"qr"`` a singular value of the scaled columns at most ``rtol``
        times the largest, for ``"gram-schmidt"`` a rest of at most ``rtol`` of a unit column. By default the
        rounding of the arithmetic, ``max(d, r, 16) * eps``, or that of half-precision storage if larger. Pass
        :func:`storage_tolerance` for a ``B`` that was widened before.
    method:
        ``"qr"`` (Householder; differentiable in torch while no column is dependent) or ``"gram-schmidt"``
        (each column projected out twice). For independent columns both give the same ``Q``, with the
        diagonal of ``R`` positive. For dependent ones Gram-Schmidt keeps the first columns that span, and
        QR the left singular vectors, strongest first.

    Raises
    ------
    ShapeError
        ``B`` is not a matrix.
    NonFiniteError
        NaN or Inf in ``B``.
    UsageError
        An unknown ``method``, ``rtol`` out of range, or a dtype that is not a real floating one.
    """
    check_relative_cut(rtol)
    prepared = prepare_matrices({"B": B}, finite=True)
    cut = column_cut(B.shape, prepared) if rtol is None else rtol
    Q = _basis(prepared.xp, prepared.arrays[0], cut, method)
    return Orthonormal(Q, Q.shape[1], B.shape[1])


@exact
def require_full_rank(B: Array, *, rtol: float | None = None, where: object = "B") -> Orthonormal[Array]:
    """Find an orthonormal basis (:func:`orthonormalise`) of a ``B``, and refuse dependent columns.

    For the start of a training: from dependent columns (a single column of zeros is enough) QR makes
    directions out of rounding noise, and its gradient is NaN.

    Raises
    ------
    UsageError
        ``B`` has dependent columns; ``where`` names the layer in the message.
    """
    basis = orthonormalise(B, rtol=rtol)
    if basis.deficiency:
        raise UsageError(
            "the columns of B are not independent, so B has no QR factorisation to train with",
            where=where,
            expected=f"rank {basis.columns}",
            found=f"rank {basis.rank}",
            hint="start from random or data-driven columns: B of zeros, as in the paper, cannot be trained",
        )
    return basis


@exact
def require_orthonormal(Q: Array, where: str = "Q") -> None:
    """Refuse a ``Q`` whose columns are not orthonormal to working precision.

    A basis that was rounded to float16 or bfloat16 is not (by up to 1e-3), ``Q Q^T`` is then no projector,
    and the error would go unseen. The bound is :func:`~paramerge.algebra.arrays.orthonormal_bound`, which any
    QR in that precision meets.

    Raises
    ------
    UsageError
        ``||Q^T Q - I||_F`` is above the bound.
    """
    prepared = prepare_matrices({where: Q})
    xp, basis = prepared.xp, detached(prepared.arrays[0])
    identity = xp.eye(basis.shape[1], dtype=basis.dtype, device=array_api_compat.device(basis))
    distance = number(xp.linalg.matrix_norm(xp.matrix_transpose(basis) @ basis - identity))
    bound = orthonormal_bound(basis.shape, prepared.eps)
    if not distance <= bound:  # also for NaN
        raise UsageError(
            "the columns of a basis are not orthonormal",
            where=where,
            expected=f"||Q^T Q - I|| <= {bound:.1e}",
            found=f"{distance:.1e}",
            hint="call orthonormalise on it after every load: storing a basis in half precision rounds it",
        )


@exact
def joint_basis(bases: Sequence[Array], *, rtol: float | None = None) -> JointBasis[Array]:
    """Find an orthonormal basis of ``span(Q1) + ... + span(Qn)``: the merged adapter of section 3.2.

    The paper takes the QR of ``[Q1 Q2]``. Where the spans overlap those columns are dependent, and QR makes
    spurious directions of their rounding noise; so this is a singular value decomposition with a relative
    cut. The result does not depend on the order of the bases, and merging A with A gives A.

    Parameters
    ----------
    bases:
        At least one (d, r_i); each is orthonormalised again first, so that any basis of the span will do.
    rtol:
        Directions with a singular value of at most ``rtol`` times the largest are left out. Two spans at
        an angle ``t`` to each other have one at about ``t / 2`` of the largest, so spans closer than
        ``2 * rtol`` are merged into one. By default ``max(d, r_1 + ... + r_n, 16) * eps``, or the rounding of
        half-precision storage if larger; pass :func:`storage_tolerance` for bases that were widened before.

    Raises
    ------
    ShapeError
        The bases do not all have d rows.
    NonFiniteError, UsageError
        As :func:`orthonormalise`; also no bases at all.
    """
    given = stack_bases(bases, rtol)
    Q, singular_values = joint_directions(given.xp, given.bases, given.cut)
    return JointBasis(Q, singular_values, Q.shape[1])


@dataclass(frozen=True, slots=True)
class BasisStack:
    """Checked bases of subspaces of one space, orthonormalised, and the relative cut for all of them."""

    xp: Any
    bases: tuple[Any, ...]
    cut: float


def stack_bases(bases: Sequence[Array], rtol: float | None) -> BasisStack:
    """Check that the bases are finite matrices with the same number of rows; orthonormalise each."""
    check_relative_cut(rtol)
    prepared = prepare_matrices({f"bases[{i}]": basis for i, basis in enumerate(bases)}, finite=True)
    rows = prepared.arrays[0].shape[0]
    for i, basis in enumerate(prepared.arrays):
        if basis.shape[0] != rows:
            raise ShapeError(
                "the bases have different numbers of rows",
                where=f"bases[{i}]",
                expected=f"{rows} rows, as bases[0]",
                found=f"{basis.shape[0]} rows",
                hint="only adapters of the same layer can be merged or compared",
            )

    def cut(shape: tuple[int, ...]) -> float:
        return column_cut(shape, prepared) if rtol is None else rtol

    orthonormal = tuple(_basis(prepared.xp, B, cut(B.shape), "qr") for B in prepared.arrays)
    return BasisStack(prepared.xp, orthonormal, cut((rows, sum(Q.shape[1] for Q in orthonormal))))


def joint_directions(xp: Any, bases: Sequence[Any], cut: float) -> tuple[Any, Any]:
    """Basis of the joint span of orthonormal bases, and the singular values of the bases side by side.

    The same bytes whatever the order of the bases: they are put in that of their contents.
    """
    ordered = sorted(bases, key=_content) if len(bases) > 1 else list(bases)
    return leading_directions(xp, xp.concat(ordered, axis=1), cut)


def _content(basis: Any) -> tuple[int, bytes]:
    return basis.shape[1], np.asarray(array_api_compat.to_device(detached(basis), "cpu")).tobytes()


def _basis(xp: Any, B: Any, cut: float, method: str) -> Any:
    if method not in ("qr", "gram-schmidt"):
        raise UsageError(
            "unknown way to orthonormalise",
            where="method",
            expected="qr or gram-schmidt",
            found=method,
            hint="use qr, unless the first columns that span must be kept",
        )
    unit = _unit_columns(xp, B)
    return _householder(xp, unit, cut) if method == "qr" else _gram_schmidt(xp, unit, cut)


def _unit_columns(xp: Any, B: Any) -> Any:
    """Columns of norm 1 (columns of zeros stay zero), without overflow or underflow on the way.

    ``span(B)`` does not depend on the scales, so no gradient goes through them.
    """
    values = detached(B)
    largest = xp.max(xp.abs(values), axis=0)
    zero = largest == 0
    largest = xp.where(zero, xp.ones_like(largest), largest)
    norms = xp.sqrt(xp.sum((values / largest) ** 2, axis=0))
    return B / largest / xp.where(zero, xp.ones_like(norms), norms)


def _householder(xp: Any, unit: Any, cut: float) -> Any:
    Q, R = xp.linalg.qr(unit)
    rank = count_above(xp, xp.linalg.svdvals(detached(R)), cut)
    if rank == unit.shape[1]:
        return positive_diagonal(xp, Q, R)
    U, _, _ = xp.linalg.svd(R, full_matrices=False)
    return Q @ U[:, :rank]


def _gram_schmidt(xp: Any, unit: Any, cut: float) -> Any:
    Q = unit[:, :0]
    for j in range(unit.shape[1]):
        rest = unit[:, j : j + 1]
        for _ in range(2):  # twice is enough: the second pass removes the rounding of the first
            rest = rest - Q @ (xp.matrix_transpose(Q) @ rest)
        length = xp.linalg.matrix_norm(rest)
        if number(length) > cut:
            Q = xp.concat([Q, rest / length], axis=1)
    return Q
