"""PaRa and LoRA on one weight: a PaRa written as a LoRA, the two in order, and the paper's naive product."""

from __future__ import annotations

from typing import Any

from paramerge.algebra.arrays import Array, check_strength, exact, prepare
from paramerge.algebra.lowrank import prepare_factors
from paramerge.algebra.para import prepare_pair
from paramerge.errors import ShapeError

__all__ = ["naive_combination", "para_then_lora", "para_to_lora"]


@exact
def para_to_lora(Q: Array, W: Array, strength: float = 1.0) -> tuple[Array, Array]:
    """Write a PaRa as a LoRA for one base weight: up ``-s Q``, down ``Q^T W0`` (section 3.2).

    Exact, and tied to this ``W0``: on another base weight the LoRA is another update, and no projection.

    Parameters
    ----------
    Q:
        (d, r) with orthonormal columns.
    W:
        (d, ...), the base weight, two or more axes; flattened to (d, k).
    strength:
        Any finite number.

    Returns
    -------
    up, down:
        (d, r) and (r, k): ``W + up @ down`` is the reduced weight, flattened.

    Raises
    ------
    ShapeError, UsageError, NonFiniteError
        As :func:`reduce`.
    """
    check_strength(strength)
    prepared = prepare_pair(Q, W)
    basis, weight = prepared.arrays
    return -strength * basis, _coefficients(prepared.xp, basis, weight)


@exact
def para_then_lora(
    Q: Array, W: Array, up: Array, down: Array, *, scale: float = 1.0, strength: float = 1.0
) -> tuple[Array, Array]:
    """Write PaRa then LoRA, the paper's ``W0 - Q Q^T W0 + a B A``, as one LoRA for one base weight.

    Its factors are up ``[-s Q, a B]`` and down ``[Q^T W0; A]``, of rank r + n (section 3.2).

    Parameters
    ----------
    Q, W, strength:
        As for :func:`para_to_lora`.
    up, down, scale:
        (d, n), (n, k) and the LoRA's scale ``a``.

    Raises
    ------
    ShapeError, UsageError, NonFiniteError
        As :func:`reduce`; also factors that do not fit ``W``.
    """
    check_strength(strength)
    check_strength(scale, "scale")
    xp, basis, coefficients, B, A = _together(Q, W, up, down)
    return (
        xp.concat([-strength * basis, scale * B], axis=1),
        xp.concat([coefficients, A], axis=0),
    )


@exact
def naive_combination(
    Q: Array, W: Array, up: Array, down: Array, *, alpha_para: float, alpha_lora: float
) -> tuple[Array, Array]:
    """The paper's naive form, for ablation only: ``(-a1 Q + a2 B)(a1 Q^T W0 + a2 A)`` (section 3.2).

    Its product is ``-a1^2 Q Q^T W0 + a2^2 B A`` plus the cross terms ``a1 a2 (B Q^T W0 - Q A)``, so it has
    neither the PaRa's nor the LoRA's effect. Use :func:`para_then_lora`.

    Parameters
    ----------
    Q, W:
        As for :func:`para_to_lora`.
    up, down:
        (d, r) and (r, k) with the same r as ``Q``: factors are added.
    alpha_para, alpha_lora:
        The paper's ``a1`` and ``a2``, finite.

    Returns
    -------
    up, down:
        (d, r) and (r, k).

    Raises
    ------
    ShapeError
        Another rank than that of ``Q``, or factors that do not fit ``W``.
    UsageError, NonFiniteError
        As :func:`reduce`.
    """
    check_strength(alpha_para, "alpha_para")
    check_strength(alpha_lora, "alpha_lora")
    _, basis, coefficients, B, A = _together(Q, W, up, down)
    if B.shape[1] != basis.shape[1]:
        raise ShapeError(
            "the ranks differ, and the naive combination adds factors",
            where="up",
            expected=f"rank {basis.shape[1]}, as Q",
            found=f"rank {B.shape[1]}",
            hint="use para_then_lora, which takes any ranks",
        )
    return alpha_lora * B - alpha_para * basis, alpha_para * coefficients + alpha_lora * A


def _coefficients(xp: Any, basis: Any, weight: Any) -> Any:
    """``Q^T W`` of a basis and a weight of two or more axes, (r, k)."""
    return xp.matrix_transpose(basis) @ xp.reshape(weight, (weight.shape[0], -1))


def _together(Q: Any, W: Any, up: Any, down: Any) -> tuple[Any, Any, Any, Any, Any]:
    """All four in one precision: the namespace, Q, Q^T W, B and A."""
    pair = prepare_pair(Q, W)
    prepare_factors(up, down, Q)
    wide = prepare({"Q": Q, "W": W, "up": up, "down": down})
    basis, weight, B, A = wide.arrays
    coefficients = _coefficients(wide.xp, basis, weight)
    if A.shape[1] != coefficients.shape[1]:
        raise ShapeError(
            "the LoRA does not fit the weight",
            where="down, W",
            expected=f"down of shape (n, {coefficients.shape[1]})",
            found=tuple(A.shape),
            hint="down has as many columns as the flattened weight: flatten a convolution's first",
        )
    return pair.xp, basis, coefficients, B, A
