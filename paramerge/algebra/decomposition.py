"""Singular vectors and values: of thin matrices through QR, cut at a rank, signs fixed."""

from __future__ import annotations

from typing import Any

from paramerge.algebra.arrays import detached, number

__all__ = ["count_above", "leading_directions", "positive_diagonal", "tall_svd"]


def leading_directions(xp: Any, M: Any, rtol: float, reference: float | None = None) -> tuple[Any, Any]:
    """Left singular vectors above the cut (:func:`count_above`), and all singular values.

    In torch the gradient of the vectors is that of the span, through QR of ``M V = U s`` with V fixed: that
    of an SVD is NaN where singular values are equal. The singular values carry none.
    """
    U, s, Vh = tall_svd(xp, detached(M))
    rank = count_above(xp, s, rtol, reference)
    if getattr(M, "requires_grad", False):
        return positive_diagonal(xp, *xp.linalg.qr(M @ xp.matrix_transpose(Vh[:rank, :]))), s
    return U[:, :rank], s


def tall_svd(xp: Any, M: Any) -> tuple[Any, Any, Any]:
    """Thin SVD through QR: faster than an SVD of the whole for the tall matrices here."""
    Q, R = xp.linalg.qr(M)
    U, s, Vh = xp.linalg.svd(R, full_matrices=False)
    return Q @ U, s, Vh


def count_above(xp: Any, singular_values: Any, rtol: float, reference: float | None = None) -> int:
    """Number of singular values above ``rtol`` times the reference (by default the largest of them)."""
    s = detached(singular_values)
    if s.shape[0] == 0:
        return 0
    top = number(s[0]) if reference is None else reference
    return int(xp.count_nonzero(s > rtol * top))


def positive_diagonal(xp: Any, Q: Any, R: Any) -> Any:
    """The one Q whose R has a positive diagonal: LAPACK leaves the signs open."""
    diagonal = xp.linalg.diagonal(detached(R))
    ones = xp.ones_like(diagonal)
    return Q * xp.where(diagonal < 0, -ones, ones)
