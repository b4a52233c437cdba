"""The effect of other adapters on a LoRA: the share that a PaRa leaves of it, the overlap of two LoRAs."""

from __future__ import annotations

from typing import Any

from paramerge.algebra.arrays import Array, column_cut, exact, number, prepare_matrices
from paramerge.algebra.lowrank import check_product, prepare_factors, scaled_to_one
from paramerge.algebra.para import reduce
from paramerge.algebra.subspace import orthonormalise, require_orthonormal
from paramerge.errors import ShapeError

__all__ = ["lora_cosine", "lora_loss", "lora_survival", "null_space_projection"]


@exact
def lora_loss(Q: Array, up: Array, down: Array) -> float:
    """Measure the share of a LoRA that a PaRa after it takes away: ``||Q^T B A||_F / ||B A||_F``, 0 to 1.

    LoRA-then-PaRa minus PaRa-then-LoRA is ``-s P B A`` (section 3.2 argues the order in words), so this is
    the loss by the wrong order at strength 1. It is 1 if ``span(B)`` lies in ``span(Q)``, whatever the LoRA's
    scale, and 0 if they are orthogonal. The rest is :func:`lora_survival`: squares add up to 1.

    Parameters
    ----------
    Q:
        (d, r) with orthonormal columns.
    up, down:
        (d, n) and (n, k). A LoRA that is 0 loses nothing: the share is 0.

    Raises
    ------
    ShapeError, NonFiniteError, UsageError
        Shapes do not fit, values are not finite, ``Q`` is not orthonormal.
    """
    xp, basis, product = _same_norm(Q, up, down)
    total = number(xp.linalg.matrix_norm(product))
    lost = number(xp.linalg.matrix_norm(xp.matrix_transpose(basis) @ product))
    return min(1.0, lost / total) if total else 0.0


@exact
def lora_survival(Q: Array, up: Array, down: Array) -> float:
    """Measure the share of a LoRA that survives a PaRa after it: ``||(I - Q Q^T) B A||_F / ||B A||_F``, 0 to
    1.

    The complement of :func:`lora_loss` (squares add up to 1), measured directly: accurate also where next to
    nothing survives. A LoRA that is 0 survives: the share is 1.

    Parameters and errors as :func:`lora_loss`.
    """
    xp, basis, product = _same_norm(Q, up, down)
    total = number(xp.linalg.matrix_norm(product))
    left = number(xp.linalg.matrix_norm(product - basis @ (xp.matrix_transpose(basis) @ product)))
    return min(1.0, left / total) if total else 1.0


@exact
def null_space_projection(
    up: Array, down: Array, other_up: Array, strength: float = 1.0, *, rtol: float | None = None
) -> tuple[Array, Array]:
    """Remove from a LoRA the output directions of another: ``(I - s P_other) B A``.

    Parameters
    ----------
    up, down:
        (d, r) and (r, k) of the LoRA to change.
    other_up:
        (d, n) of the other, or any basis of directions to spare.
    strength:
        1 removes all of it; less is the soft version, 0 none.
    rtol:
        As for :func:`orthonormalise`, of ``other_up``.

    Returns
    -------
    up, down:
        The changed up factor and the down factor, both in working precision.

    Raises
    ------
    ShapeError, NonFiniteError, UsageError
        Shapes do not fit, values are not finite, ``rtol`` out of range.
    """
    B, A, other = prepare_factors(up, down, other_up, "other_up").arrays
    if rtol is None:  # of the precision that the other adapter was stored in, not of the widest
        rtol = column_cut(other.shape, prepare_matrices({"other_up": other_up}))
    return reduce(B, orthonormalise(other, rtol=rtol).Q, strength), A


@exact
def lora_cosine(up1: Array, down1: Array, up2: Array, down2: Array) -> float:
    """Measure whether two LoRAs reinforce or cancel: the cosine between ``B1 A1`` and ``B2 A2``, -1 to 1.

    ``<B1 A1, B2 A2>_F = trace((B2^T B1) (A1 A2^T))`` over the two Frobenius norms: 1 for the same update up
    to a positive scale, -1 for opposite ones, 0 for orthogonal ones or if either is 0.

    Parameters
    ----------
    up1, down1, up2, down2:
        (d, r1), (r1, k), (d, r2) and (r2, k).

    Raises
    ------
    ShapeError, NonFiniteError, UsageError
        The factors do not fit together, are not finite, or not of a real floating dtype.
    """
    given = {"up1": up1, "down1": down1, "up2": up2, "down2": down2}
    prepared = prepare_matrices(given, finite=True, rowless=("down1", "down2"))
    check_product(up1, down1, "up1, down1")
    check_product(up2, down2, "up2, down2")
    if (up1.shape[0], down1.shape[1]) != (up2.shape[0], down2.shape[1]):
        raise ShapeError(
            "the LoRAs are for weights of different shapes",
            where="up2, down2",
            expected=f"{(up1.shape[0], down1.shape[1])}",
            found=f"{(up2.shape[0], down2.shape[1])}",
            hint="only adapters of the same layer can be compared",
        )
    xp = prepared.xp
    B1, A1, B2, A2 = (scaled_to_one(xp, factor)[0] for factor in prepared.arrays)
    inner = number(xp.sum((xp.matrix_transpose(B2) @ B1) * xp.matrix_transpose(A1 @ xp.matrix_transpose(A2))))
    norms = [number(xp.linalg.matrix_norm(_thin_product(xp, B, A))) for B, A in ((B1, A1), (B2, A2))]
    scale = norms[0] * norms[1]
    return max(-1.0, min(1.0, inner / scale)) if scale else 0.0


def _same_norm(Q: Any, up: Any, down: Any) -> tuple[Any, Any, Any]:
    """The namespace, the basis, and a thin matrix with the column space of ``up @ down``, and its norms up to
    one factor."""
    require_orthonormal(Q)
    prepared = prepare_factors(up, down, Q)
    *factors, basis = prepared.arrays
    B, A = (scaled_to_one(prepared.xp, factor)[0] for factor in factors)
    return prepared.xp, basis, _thin_product(prepared.xp, B, A)


def _thin_product(xp: Any, up: Any, down: Any) -> Any:
    """``B R^T`` with ``A^T = Q R``: ``B A`` without the orthonormal rows of Q, so of the same norms."""
    _, R = xp.linalg.qr(xp.matrix_transpose(down))
    return up @ xp.matrix_transpose(R)
