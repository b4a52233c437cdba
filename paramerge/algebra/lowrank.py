"""LoRAs as products of thin factors: truncate, concatenate, project and compare without forming ``B A``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

from paramerge.algebra.arrays import (
    Array,
    Prepared,
    check_relative_cut,
    check_strength,
    column_cut,
    number,
    prepare_matrices,
    rounding_cut,
)
from paramerge.algebra.para import reduce
from paramerge.algebra.subspace import count_above, orthonormalise, require_orthonormal
from paramerge.errors import ShapeError, UsageError

__all__ = [
    "TruncatedLora",
    "concat_loras",
    "leading_output_directions",
    "lora_cosine",
    "lora_survival",
    "null_space_projection",
    "truncate_lora",
]


@dataclass(frozen=True, slots=True)
class TruncatedLora(Generic[Array]):
    """The best LoRA of a lower rank.

    ``up`` is (d, rank), ``down`` (rank, k), the singular values split evenly between them. ``error`` is
    the relative Frobenius distance to the product before, ``singular_values`` all those of it, descending.
    """

    up: Array
    down: Array
    rank: int
    error: float
    singular_values: Array


def truncate_lora(
    up: Array,
    down: Array,
    *,
    rank: int | None = None,
    energy: float | None = None,
    rtol: float | None = None,
) -> TruncatedLora[Array]:
    """Truncate ``up @ down`` to its leading singular directions, the nearest of its rank (Eckart-Young).

    The SVD goes through QR of both factors, so it costs as much as an r x r one and no d x k matrix is
    formed. Directions that only rounding tells from none are never kept, so the rank may come out lower
    than asked for; a LoRA that is 0 has rank 0.

    Parameters
    ----------
    up, down:
        (d, r) and (r, k), any real floating dtype; a scale is to be multiplied in by the caller.
    rank:
        Keep at most so many directions.
    energy:
        Keep the fewest directions with at least this share, 0 to 1, of the squared singular values. With
        both, the smaller rank counts; with neither, every direction that is there.
    rtol:
        Relative cut for directions that are there, by default ``max(d, k, 16) * eps`` of the working precision.

    Raises
    ------
    ShapeError
        The factors are not matrices that can be multiplied.
    NonFiniteError
        NaN or Inf in a factor.
    UsageError
        A negative rank or an energy outside [0, 1].
    """
    prepared = prepare_factors(up, down)
    xp = prepared.xp
    U, s, Vh = _thin_svd(prepared)
    kept = _chosen_rank(s, _there(prepared, s, rtol), rank, energy)
    root = xp.sqrt(s[:kept])
    total = number(xp.linalg.vector_norm(s))
    lost = number(xp.linalg.vector_norm(s[kept:]))
    return TruncatedLora(
        U[:, :kept] * root,
        xp.reshape(root, (kept, 1)) * Vh[:kept, :],
        kept,
        lost / total if total else 0.0,
        s,
    )


def leading_output_directions(
    up: Array,
    down: Array,
    *,
    rank: int | None = None,
    energy: float | None = None,
    rtol: float | None = None,
) -> Array:
    """Find where a LoRA writes most: the left singular vectors of ``up @ down``, strongest first.

    They span what a PaRa must remove to undo the LoRA's strongest effect, and make a PaRa basis from a
    LoRA. Parameters and errors as :func:`truncate_lora`.

    Returns
    -------
    Array
        (d, rank) with orthonormal columns, in working precision; no columns for a LoRA that is 0.
    """
    prepared = prepare_factors(up, down)
    U, s, _ = _thin_svd(prepared)
    kept = _chosen_rank(s, _there(prepared, s, rtol), rank, energy)
    directions: Array = U[:, :kept]
    return directions


def concat_loras(
    ups: Sequence[Array], downs: Sequence[Array], scales: Sequence[float]
) -> tuple[Array, Array]:
    """Add LoRAs exactly: ``sum_i s_i B_i A_i`` is one LoRA of rank ``r_1 + ... + r_n``.

    Its factors are ``[s_1 B_1 ... s_n B_n]`` and the ``A_i`` on top of each other. A single LoRA at scale 1
    gives itself back.

    Parameters
    ----------
    ups, downs:
        (d, r_i) and (r_i, k), as many of each.
    scales:
        One finite number for each.

    Raises
    ------
    ShapeError
        The factors do not fit together.
    UsageError, NonFiniteError
        None at all, or not as many of each; values that are not finite.
    """
    if not len(ups) == len(downs) == len(scales):
        raise UsageError(
            "Not as many factors as scales.",
            where="ups, downs, scales",
            expected="one of each for every LoRA",
            found=f"{len(ups)}, {len(downs)}, {len(scales)}",
        )
    for i, scale in enumerate(scales):
        check_strength(scale, f"scales[{i}]")
    factors = {f"ups[{i}]": up for i, up in enumerate(ups)}
    factors |= {f"downs[{i}]": down for i, down in enumerate(downs)}
    prepared = prepare_matrices(factors, finite=True)
    wide_ups, wide_downs = prepared.arrays[: len(ups)], prepared.arrays[len(ups) :]
    for i, (up, down) in enumerate(zip(wide_ups, wide_downs, strict=True)):
        _check_product(up, down, f"ups[{i}], downs[{i}]")
        if (up.shape[0], down.shape[1]) != (wide_ups[0].shape[0], wide_downs[0].shape[1]):
            raise ShapeError(
                "The LoRAs are not for weights of one shape.",
                where=f"ups[{i}], downs[{i}]",
                expected=f"{(wide_ups[0].shape[0], wide_downs[0].shape[1])}",
                found=f"{(up.shape[0], down.shape[1])}",
            )
    xp = prepared.xp
    scaled = [scale * up for scale, up in zip(scales, wide_ups, strict=True)]
    return xp.concat(scaled, axis=1), xp.concat(list(wide_downs), axis=0)


def lora_survival(Q: Array, up: Array, down: Array) -> float:
    """Tell what share of a LoRA a PaRa after it takes away: ``||Q^T B A||_F / ||B A||_F``, 0 to 1.

    LoRA-then-PaRa minus PaRa-then-LoRA is ``-s P B A`` (section 3.2 argues the order in words), so this is
    what the wrong order loses. It is 1 if ``span(B)`` lies in ``span(Q)``, whatever the LoRA's scale, and 0
    if they are orthogonal. The share that survives is ``sqrt(1 - share**2)``: squares add up.

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
    require_orthonormal(Q)
    prepared = prepare_factors(up, down, Q)
    xp, (B, A, basis) = prepared.xp, prepared.arrays
    _, R = xp.linalg.qr(xp.matrix_transpose(A))
    product = B @ xp.matrix_transpose(R)  # of the same Frobenius norm as B A
    total = number(xp.linalg.matrix_norm(product))
    lost = number(xp.linalg.matrix_norm(xp.matrix_transpose(basis) @ product))
    return min(1.0, lost / total) if total else 0.0


def null_space_projection(
    up: Array, down: Array, other_up: Array, strength: float = 1.0, *, rtol: float | None = None
) -> tuple[Array, Array]:
    """Keep of a LoRA what does not touch the output directions of another: ``(I - s P_other) B A``.

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
    prepared = prepare_factors(up, down, other_up)
    B, A, other = prepared.arrays
    basis = orthonormalise(other, rtol=column_cut(other.shape, prepared) if rtol is None else rtol).Q
    return reduce(B, basis, strength), A


def lora_cosine(up1: Array, down1: Array, up2: Array, down2: Array) -> float:
    """Tell whether two LoRAs reinforce or cancel: the cosine between ``B1 A1`` and ``B2 A2``, -1 to 1.

    ``<B1 A1, B2 A2>_F = trace((B2^T B1) (A1 A2^T))`` over the two Frobenius norms: 1 for the same update up
    to a positive scale, -1 for opposite ones, 0 for orthogonal ones or if either is 0.

    Raises
    ------
    ShapeError, NonFiniteError, UsageError
        The factors do not fit together, are not finite, or not of a real floating dtype.
    """
    first, second = prepare_factors(up1, down1), prepare_factors(up2, down2)
    xp = prepare_factors(up1, down2 if down2.shape[0] == up1.shape[1] else down1, up2).xp
    B1, A1 = first.arrays
    B2, A2 = second.arrays
    inner = number(xp.sum((xp.matrix_transpose(B2) @ B1) * xp.matrix_transpose(A1 @ xp.matrix_transpose(A2))))
    norms = [number(xp.linalg.vector_norm(_thin_svd(factors)[1])) for factors in (first, second)]
    scale = norms[0] * norms[1]
    return max(-1.0, min(1.0, inner / scale)) if scale else 0.0


def prepare_factors(up: Any, down: Any, basis: Any = None) -> Prepared:
    """Check the factors of a LoRA, and a basis for its output side; widen them together."""
    inputs = {"up": up, "down": down} | ({} if basis is None else {"basis": basis})
    prepared = prepare_matrices(inputs, finite=True)
    _check_product(up, down, "up, down")
    if basis is not None and basis.shape[0] != up.shape[0]:
        raise ShapeError(
            "The directions and the LoRA belong to different layers.",
            where="basis, up",
            expected=f"{up.shape[0]} rows, as up",
            found=f"{basis.shape[0]} rows",
        )
    return prepared


def _check_product(up: Any, down: Any, where: str) -> None:
    if up.shape[1] != down.shape[0]:
        raise ShapeError(
            "The factors of a LoRA do not fit together.",
            where=where,
            expected="up (d, r) and down (r, k)",
            found=f"up {tuple(up.shape)}, down {tuple(down.shape)}",
        )


def _thin_svd(prepared: Prepared) -> tuple[Any, Any, Any]:
    """SVD of ``up @ down`` through QR of the factors: (d, m), (m,), (m, k)."""
    xp, (up, down) = prepared.xp, prepared.arrays
    Q_up, R_up = xp.linalg.qr(up)
    Q_down, R_down = xp.linalg.qr(xp.matrix_transpose(down))
    U, s, Vh = xp.linalg.svd(R_up @ xp.matrix_transpose(R_down), full_matrices=False)
    return Q_up @ U, s, Vh @ xp.matrix_transpose(Q_down)


def _there(prepared: Prepared, s: Any, rtol: float | None) -> int:
    """How many directions of the product rounding does not explain."""
    check_relative_cut(rtol)
    up, down = prepared.arrays
    cut = rounding_cut((up.shape[0], down.shape[1]), prepared.eps)
    return count_above(prepared.xp, s, cut if rtol is None else rtol)


def _chosen_rank(s: Any, there: int, rank: int | None, energy: float | None) -> int:
    if rank is not None and rank < 0:
        raise UsageError("A rank is negative.", where="rank", expected="0 or more", found=rank)
    if energy is not None and not 0.0 <= energy <= 1.0:
        raise UsageError("A share is out of range.", where="energy", expected="0 to 1", found=energy)
    by_rank = there if rank is None else min(there, rank)
    return by_rank if energy is None else min(by_rank, _rank_for_energy(s, energy))


def _rank_for_energy(s: Any, energy: float) -> int:
    """The fewest leading singular values whose squares make up the share, decided on what is left out."""
    squares = [number(s[i]) ** 2 for i in range(s.shape[0])]
    total, rest = sum(squares), 0.0
    rank = len(squares)
    while rank and rest + squares[rank - 1] <= (1.0 - energy) * total:
        rest += squares[rank - 1]
        rank -= 1
    return rank
