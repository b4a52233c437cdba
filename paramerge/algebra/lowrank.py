"""LoRAs as products of thin factors: truncate and concatenate them without forming ``B A``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

from paramerge.algebra.arrays import (
    Array,
    Prepared,
    check_relative_cut,
    check_strength,
    detached,
    exact,
    number,
    prepare_matrices,
    rounding_cut,
)
from paramerge.algebra.decomposition import count_above
from paramerge.errors import ShapeError, UsageError

__all__ = [
    "TruncatedLora",
    "concat_loras",
    "leading_output_directions",
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


@exact
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
    formed. Directions that rounding explains are never kept, so the rank may come out lower than asked for; a
    LoRA that is 0 has rank 0.

    Parameters
    ----------
    up, down:
        (d, r) and (r, k), r from 0, any real floating dtype; a scale is to be multiplied in by the caller.
    rank:
        Keep at most so many directions.
    energy:
        Keep the fewest directions with at least this share, 0 to 1, of the squared singular values. With
        both, the smaller rank counts; with neither, every direction that is there.
    rtol:
        Relative cut for directions that are there, by default ``max(d, k, 16) * eps`` of the working
        precision.

    Raises
    ------
    ShapeError
        The factors are not matrices that can be multiplied.
    NonFiniteError
        NaN or Inf in a factor, or a product beyond the dtype's range.
    UsageError
        A negative rank or an energy outside [0, 1].
    """
    prepared = prepare_factors(up, down)
    xp = prepared.xp
    product = _thin_svd(prepared)
    s = product.s
    kept = _chosen_rank(s, _rank_above_rounding(prepared, product, rtol), rank, energy)
    halves, odd = divmod(product.exponent, 2)
    root = _times_power_of_two(xp.sqrt(s[:kept] * 2.0**odd), halves)
    total = number(xp.linalg.vector_norm(s))
    lost = number(xp.linalg.vector_norm(s[kept:]))
    return TruncatedLora(
        product.U[:, :kept] * root,
        xp.reshape(root, (kept, 1)) * product.Vh[:kept, :],
        kept,
        lost / total if total else 0.0,
        _times_power_of_two(s, product.exponent),
    )


@exact
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
    product = _thin_svd(prepared)
    s = product.s
    kept = _chosen_rank(s, _rank_above_rounding(prepared, product, rtol), rank, energy)
    directions: Array = product.U[:, :kept]
    return directions


@exact
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
            "the numbers of factors and scales differ",
            where="ups, downs, scales",
            expected="one of each for every LoRA",
            found=f"{len(ups)}, {len(downs)}, {len(scales)}",
            hint="pass lists of one length",
        )
    for i, scale in enumerate(scales):
        check_strength(scale, f"scales[{i}]")
    factors = {f"ups[{i}]": up for i, up in enumerate(ups)}
    rowless = {f"downs[{i}]": down for i, down in enumerate(downs)}
    prepared = prepare_matrices(factors | rowless, finite=True, rowless=rowless)
    wide_ups, wide_downs = prepared.arrays[: len(ups)], prepared.arrays[len(ups) :]
    for i, (up, down) in enumerate(zip(wide_ups, wide_downs, strict=True)):
        check_product(up, down, f"ups[{i}], downs[{i}]")
        if (up.shape[0], down.shape[1]) != (wide_ups[0].shape[0], wide_downs[0].shape[1]):
            raise ShapeError(
                "the LoRAs are for weights of different shapes",
                where=f"ups[{i}], downs[{i}]",
                expected=f"{(wide_ups[0].shape[0], wide_downs[0].shape[1])}",
                found=f"{(up.shape[0], down.shape[1])}",
                hint="only adapters of the same layer can be added",
            )
    xp = prepared.xp
    scaled = [scale * up for scale, up in zip(scales, wide_ups, strict=True)]
    return xp.concat(scaled, axis=1), xp.concat(list(wide_downs), axis=0)


def prepare_factors(up: Any, down: Any, basis: Any = None, name: str = "Q") -> Prepared:
    """Check the factors of a LoRA, and a basis for its output side; widen them together."""
    inputs = {"up": up, "down": down} | ({} if basis is None else {name: basis})
    prepared = prepare_matrices(inputs, finite=True, rowless=("down",))  # a LoRA of rank 0 is a LoRA
    check_product(up, down, "up, down")
    if basis is not None and basis.shape[0] != up.shape[0]:
        raise ShapeError(
            "the directions and the LoRA have different numbers of rows",
            where=f"{name}, up",
            expected=f"{up.shape[0]} rows, as up",
            found=f"{basis.shape[0]} rows",
            hint="pass two adapters of the same layer",
        )
    return prepared


def check_product(up: Any, down: Any, where: str) -> None:
    """Refuse factors that cannot be multiplied."""
    if up.shape[1] != down.shape[0]:
        raise ShapeError(
            "the factors of a LoRA do not fit together",
            where=where,
            expected="up (d, r) and down (r, k)",
            found=f"up {tuple(up.shape)}, down {tuple(down.shape)}",
            hint="up is PEFT's lora_B and down its lora_A; they share the rank r",
        )


def scaled_to_one(xp: Any, factor: Any) -> tuple[Any, int]:
    """``factor`` over the power of two that brings its largest entry to 1/2 or more, and the exponent.

    Exact, so it changes no digit; squares and products of what is left neither overflow nor vanish.
    """
    largest = number(xp.max(xp.abs(detached(factor)))) if 0 not in factor.shape else 0.0
    exponent = math.frexp(largest)[1]
    return _times_power_of_two(factor, -exponent), exponent


def _times_power_of_two(array: Any, exponent: int) -> Any:
    half = exponent // 2  # a power as far as that of the smallest number is none of a float's
    return array * 2.0**half * 2.0 ** (exponent - half)


@dataclass(frozen=True, slots=True)
class _Product:
    """SVD of ``2^-exponent B A``: (d, m), (m,), (m, k). ``rounding`` is what s may be off by."""

    U: Any
    s: Any
    Vh: Any
    exponent: int
    rounding: float


def _thin_svd(prepared: Prepared) -> _Product:
    """SVD of ``up @ down`` through QR of the factors.

    The QR of a factor is off by a few roundings of each of its columns, so the product by a few of
    ``sum_i |b_i| |a_i|``, whatever cancels in it: of ``A - A`` that is all there is.
    """
    xp = prepared.xp
    (up, up_exponent), (down, down_exponent) = (scaled_to_one(xp, factor) for factor in prepared.arrays)
    Q_up, R_up = xp.linalg.qr(up)
    Q_down, R_down = xp.linalg.qr(xp.matrix_transpose(down))
    U, s, Vh = xp.linalg.svd(R_up @ xp.matrix_transpose(R_down), full_matrices=False)
    norms = xp.linalg.vector_norm(detached(up), axis=0) * xp.linalg.vector_norm(detached(down), axis=1)
    rounding = 4 * prepared.eps * number(xp.sum(norms))
    return _Product(Q_up @ U, s, Vh @ xp.matrix_transpose(Q_down), up_exponent + down_exponent, rounding)


def _rank_above_rounding(prepared: Prepared, product: _Product, rtol: float | None) -> int:
    """The number of directions of the product that rounding does not explain."""
    check_relative_cut(rtol)
    up, down = prepared.arrays
    cut = rounding_cut((up.shape[0], down.shape[1]), prepared.eps) if rtol is None else rtol
    above = count_above(prepared.xp, product.s, cut)
    return min(above, count_above(prepared.xp, product.s, product.rounding, 1.0))


def _chosen_rank(s: Any, available: int, rank: int | None, energy: float | None) -> int:
    if rank is not None and rank < 0:
        raise UsageError(
            "a rank is negative",
            where="rank",
            expected="0 or more",
            found=rank,
            hint="rank 0 leaves a layer alone",
        )
    if energy is not None and not 0.0 <= energy <= 1.0:
        raise UsageError(
            "a share is out of range",
            where="energy",
            expected="0 to 1",
            found=energy,
            hint="it is a share of the squared singular values: 0.9 keeps nine tenths of them",
        )
    by_rank = available if rank is None else min(available, rank)
    return by_rank if energy is None else min(by_rank, _rank_for_energy(s, energy))


def _rank_for_energy(s: Any, energy: float) -> int:
    """The fewest leading singular values whose squares make up the share, decided on the rest."""
    squares = [number(s[i]) ** 2 for i in range(s.shape[0])]
    total, rest = sum(squares), 0.0
    rank = len(squares)
    while rank and rest + squares[rank - 1] <= (1.0 - energy) * total:
        rest += squares[rank - 1]
        rank -= 1
    return rank
