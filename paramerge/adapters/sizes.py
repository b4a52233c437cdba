"""How many numbers each family of adapters stores for a layer, from the layer's shape alone.

``d`` is the number of outputs, ``k`` the number of inputs (of a convolution: input channels times kernel).
Where trainers differ the form counted is LyCORIS' (LoHa, LoKr, OFT, BOFT, GLoRA, IA3), PEFT's (DoRA) or that
of the family's own code (DiffuseKronA, SVDiff).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["FAMILIES", "SizeSettings", "butterfly_blocks", "factor_pair", "stored_numbers"]


@dataclass(frozen=True, slots=True)
class SizeSettings:
    """What decides a family's size besides the layer.

    Attributes
    ----------
    rank:
        r: the rank of PaRa, LoRA, DoRA, LoHa, LoKr's large factor and GLoRA; the size of OFT's and BOFT's
        blocks. The other families have no rank.
    kronecker:
        DiffuseKronA's (a1, a2): its ``down`` is (a2, a1) and its ``up`` (d / a1, k / a2).
    lokr_factor:
        LoKr's ``factor``; -1 divides each side as evenly as it goes.
    """

    rank: int
    kronecker: tuple[int, int] = (64, 4)
    lokr_factor: int = -1


def stored_numbers(family: str, shape: tuple[int, ...], settings: SizeSettings) -> int | None:
    """The numbers that ``family`` (one of :data:`FAMILIES`) stores for a weight of ``shape``.

    None where the layer has no such form: its sides are not divisible as asked, or it is a convolution and
    the family knows linear layers only.
    """
    return FAMILIES[family](shape, settings)


def factor_pair(size: int, factor: int = -1) -> tuple[int, int]:
    """LyCORIS' division of ``size`` into (small, large), the small one near ``factor`` and at most that.

    With a ``factor`` below 0 the two are as close to each other as the divisors of ``size`` allow.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    small = max(m for m in range(1, math.isqrt(size) + 1) if size % m == 0 and m <= max(1, limit))
    return small, size // small


def butterfly_blocks(size: int, block: int) -> tuple[int, int] | None:
    """LyCORIS' division for BOFT: (block size, number of blocks), the number a power of two.

    The largest even block size of at most ``block`` is taken; None where there is none.
    """
    for candidate in range(block - block % 2, 1, -2):
        count, rest = divmod(size, candidate)
        if not rest and count.bit_count() == 1:
            return candidate, count
    return None


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _para(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return shape[0] * min(settings.rank, shape[0])


def _lora(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return settings.rank * sum(_sides(shape))


def _dora(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return _lora(shape, settings) + shape[0]


def _loha(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return 2 * _lora(shape, settings)


def _lokr(shape: tuple[int, ...], settings: SizeSettings) -> int:
    """A small full factor, and a large one that is full, too, where the rank is at least half its side."""
    out_small, out_large = factor_pair(shape[0], settings.lokr_factor)
    in_small, in_large = factor_pair(shape[1], settings.lokr_factor)
    kernel = math.prod(shape[2:])
    if settings.rank >= max(out_large, in_large) / 2:
        return out_small * in_small + out_large * in_large * kernel
    return out_small * in_small + settings.rank * (out_large + in_large * kernel)


def _krona(shape: tuple[int, ...], settings: SizeSettings) -> int | None:
    a1, a2 = settings.kronecker
    if len(shape) != 2 or shape[0] % a1 or shape[1] % a2:
        return None
    return a1 * a2 + (shape[0] // a1) * (shape[1] // a2)


def _oft(shape: tuple[int, ...], settings: SizeSettings) -> int:
    size, count = factor_pair(shape[0], settings.rank)
    return count * size * size


def _boft(shape: tuple[int, ...], settings: SizeSettings) -> int | None:
    blocks = butterfly_blocks(shape[0], settings.rank)
    if blocks is None:
        return None
    size, count = blocks
    return (1 + (count - 1).bit_count()) * count * size * size


def _glora(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return settings.rank * 2 * shape[1] + _lora(shape, settings)


def _ia3(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return shape[0]


def _svdiff(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return min(_sides(shape))


def _full(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return math.prod(shape)


FAMILIES: Mapping[str, Callable[[tuple[int, ...], SizeSettings], int | None]] = MappingProxyType(
    {
        "para": _para,
        "lora": _lora,
        "dora": _dora,
        "loha": _loha,
        "lokr": _lokr,
        "krona": _krona,
        "oft": _oft,
        "boft": _boft,
        "glora": _glora,
        "ia3": _ia3,
        "svdiff": _svdiff,
        "full": _full,
    }
)
"""Each family's rule: from a weight's shape and the settings to the numbers stored."""
