"""PaRa on one weight: project, reduce, flatten a convolution, count ranks (section 3.1 of the paper)."""

from __future__ import annotations

import math
from typing import Any

from paramerge.algebra.arrays import (
    Array,
    Prepared,
    check_relative_cut,
    check_strength,
    exact,
    number,
    prepare,
    rounding_cut,
)
from paramerge.algebra.decomposition import count_above
from paramerge.algebra.subspace import require_orthonormal
from paramerge.errors import ShapeError, UsageError

__all__ = [
    "flatten_conv",
    "numerical_rank",
    "project",
    "reduce",
    "removed_rank",
    "unflatten_conv",
]


def flatten_conv(W: Array) -> Array:
    """View a weight as the matrix that PaRa works on: (c_out, c_in, h, w) to (c_out, c_in * h * w).

    Rows are output features; a matrix comes back as it is. The basis for it is (c_out, r): the shape
    c_out x (c_in * h * w) that the paper's remark on convolutions (section 3.1) gives to ``B`` is a slip.

    Raises :class:`~paramerge.errors.ShapeError` for a scalar or a vector.
    """
    flat: Array = _flatten(prepare({"W": W}).xp, W)
    return flat


def unflatten_conv(M: Array, shape: tuple[int, ...]) -> Array:
    """Give a flattened weight its shape back: the inverse of :func:`flatten_conv`.

    Raises :class:`~paramerge.errors.ShapeError` if ``M`` is not the flattened form of ``shape``.
    """
    if not shape or tuple(M.shape) != (shape[0], math.prod(shape[1:])):
        raise ShapeError(
            "the matrix is not a flattened weight of this shape",
            where="M",
            expected=f"{(shape[0], math.prod(shape[1:])) if shape else 'a shape of two or more axes'}",
            found=tuple(M.shape),
            hint="pass the shape that the weight had before flatten_conv",
        )
    unflat: Array = prepare({"M": M}).xp.reshape(M, shape)
    return unflat


@exact
def project(Q: Array, W: Array) -> Array:
    """Apply the projector onto ``span(Q)`` without forming it: ``Q (Q^T W)``.

    Parameters
    ----------
    Q:
        (d, r) with orthonormal columns.
    W:
        (d, ...), two or more axes; the result has its shape, in working precision.

    Raises
    ------
    ShapeError
        ``Q`` and ``W`` have different numbers of rows.
    UsageError
        The columns of ``Q`` are not orthonormal (see :func:`orthonormalise`), or the inputs are arrays of
        two libraries, devices, or not of a real floating dtype.
    """
    prepared = prepare_pair(Q, W)
    xp, (basis, weight) = prepared.xp, prepared.arrays
    flat = _flatten(xp, weight)
    projected: Array = xp.reshape(basis @ (xp.matrix_transpose(basis) @ flat), weight.shape)
    return projected


@exact
def reduce(W: Array, Q: Array, strength: float = 1.0) -> Array:
    """Reduce a weight: ``W - s Q Q^T W``, the paper's ``W_reduce`` at strength 1 (equation 2).

    Only strength 1 is a projection and lowers the rank; applying strength s twice is applying
    ``1 - (1 - s)^2`` once.

    Parameters
    ----------
    W:
        (d, ...), two or more axes: a matrix or a convolution weight. NaN and Inf go through.
    Q:
        (d, r) with orthonormal columns; r = 0 changes nothing.
    strength:
        Any finite number.

    Returns
    -------
    Array
        The shape of ``W``, in working precision: float64 if either is, else float32, not rounded back.

    Raises
    ------
    ShapeError, UsageError
        As :func:`project`.
    NonFiniteError
        The strength is NaN or Inf.
    """
    check_strength(strength)
    prepared = prepare_pair(Q, W)
    xp, (basis, weight) = prepared.xp, prepared.arrays
    flat = _flatten(xp, weight)
    reduced: Array = xp.reshape(flat - strength * (basis @ (xp.matrix_transpose(basis) @ flat)), weight.shape)
    return reduced


@exact
def numerical_rank(W: Array, *, rtol: float | None = None, reference: float | None = None) -> int:
    """Count the singular values of ``W`` that rounding does not explain.

    Parameters
    ----------
    W:
        (d, ...), two or more axes; flattened to (d, k).
    rtol:
        Relative cut, by default ``max(d, k, 16) * eps`` of the working precision. A weight that was reduced
        and then rounded to half precision has its full rank again, from rounding: verify a bake by
        ``||Q^T W||``, not by a rank.
    reference:
        The norm that the cut is relative to, 0 or more, by default the largest singular value of ``W``. For
        the rank of a reduced weight pass the spectral norm of the weight before, whose rounding it carries.

    Raises
    ------
    ShapeError, NonFiniteError, UsageError
        ``W`` has fewer than two axes, is not finite, or is not of a real floating dtype; ``rtol`` or
        ``reference`` out of range.
    """
    check_relative_cut(rtol)
    if reference is not None and not 0.0 <= reference < math.inf:
        raise UsageError(
            "the norm to count a rank against is out of range",
            where="reference",
            expected="0 or more",
            found=reference,
            hint="pass the spectral norm of the weight before it was reduced",
        )
    prepared = prepare({"W": W}, finite=True)
    flat = _flatten(prepared.xp, prepared.arrays[0])
    if rtol is None:
        rtol = rounding_cut(flat.shape, prepared.eps)
    return count_above(prepared.xp, prepared.xp.linalg.svdvals(flat), rtol, reference)


@exact
def removed_rank(Q: Array, W: Array, *, rtol: float | None = None) -> int:
    """Count the rank that ``W`` loses to ``Q``: ``rank(W) - rank((I - Q Q^T) W)``.

    It is ``dim(col(W) n span(Q))``: r for every ``Q`` if ``W`` has full row rank, r if ``span(Q)`` lies in
    ``col(W)`` (the paper's Theorem 1), and in general less, down to 0 for a generic ``Q`` outside
    ``col(W)``, which changes ``W`` all the same (the paper's Note to Theorem 1 says it does not).

    Both ranks use one cut, ``rtol`` times the spectral norm of ``W``. Raises as :func:`project` and
    :func:`numerical_rank`.
    """
    prepared = prepare_pair(Q, W)
    xp, weight = prepared.xp, prepared.arrays[1]
    norm = number(xp.linalg.matrix_norm(_flatten(xp, weight), ord=2)) if math.prod(W.shape) else 0.0
    before = numerical_rank(weight, rtol=rtol, reference=norm)
    return before - numerical_rank(reduce(weight, prepared.arrays[0]), rtol=rtol, reference=norm)


def prepare_pair(Q: Any, W: Any) -> Prepared:
    """Check an orthonormal basis and a weight (two or more axes) for it; widen both."""
    require_orthonormal(Q)
    prepared = prepare({"Q": Q, "W": W})
    if len(W.shape) < 2 or W.shape[0] != Q.shape[0]:
        raise ShapeError(
            "the basis does not fit the weight",
            where="Q, W",
            expected=f"W of shape ({Q.shape[0]}, ...), rows as Q",
            found=f"Q {tuple(Q.shape)}, W {tuple(W.shape)}",
            hint="the rows of W are its output features; a basis has one row for each",
        )
    return prepared


def _flatten(xp: Any, W: Any) -> Any:
    if len(W.shape) < 2:
        raise ShapeError(
            "the weight has fewer than two axes",
            where="W",
            expected="(out, in) or (out, in, ...)",
            found=tuple(W.shape),
            hint="biases and norms have one axis; PaRa works on linear and convolution weights",
        )
    return xp.reshape(W, (W.shape[0], math.prod(W.shape[1:])))
