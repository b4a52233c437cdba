"""The settings and helpers by which families tell their size from a layer's shape alone.

``d`` is the number of outputs, ``k`` the number of inputs (of a convolution: input channels times kernel).
Where trainers differ the form counted is LyCORIS' (LoHa, LoKr, OFT, BOFT, GLoRA, IA3), PEFT's (DoRA) or that
of the family's own code (DiffuseKronA, SVDiff).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SizeSettings:
    """The settings that decide a family's size beside the layer.

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


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """``d`` and ``k`` of a weight's shape."""
    return shape[0], math.prod(shape[1:])
