"""Codes of one byte with scales, as data: :mod:`paramerge.apply.encoder` writes weights so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from paramerge.files.dtypes import BITS

Rounding = Literal["nearest", "stochastic"]
"""The way in which values become codes."""


@dataclass(frozen=True)
class Part:
    """A tensor beside the codes: its key, its dtype by the header's name, and its shape."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Encoding:
    """Codes with a scale over a grid of blocks.

    Attributes
    ----------
    dtype:
        Of the codes: ``F8_E4M3``, ``F8_E5M2`` or ``I8``.
    shape:
        Of the codes, which is the weight's.
    scale:
        The scale's tensor. Of dtype ``F8_E8M0`` or ``U8`` it holds the exponents of powers of two.
    block:
        Rows and columns that have one scale.
    blocked:
        Whether scales are in the order of NVIDIA's kernels.
    group:
        Inputs of a group that is rotated by a Hadamard matrix before it is rounded, or None.
    rounding:
        To the nearest code, or stochastic: with bits of the tensor's key, so that the same bytes come out.
    marks:
        Other tensors that are written with the codes: bytes by key.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: Part
    block: tuple[int, int]
    blocked: bool = False
    group: int | None = None
    rounding: Rounding = "stochastic"
    marks: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tensors beside the codes that are made with them."""
        return (self.scale, *(Part(key, "U8", (len(data),)) for key, data in self.marks.items()))
