"""Sizes of adapters before there is one: from an architecture's layers, a subset, a rank and a boundary.

The paper's Table 3 and Table 5 come out of this (``tests/analysis/test_sizes.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Literal

from paramerge.adapters.family import Stored
from paramerge.adapters.registry import sized
from paramerge.adapters.sizes import SizeSettings
from paramerge.algebra import adjusted_rank
from paramerge.errors import UsageError
from paramerge.files.dtype_names import parse_dtype
from paramerge.files.dtypes import BITS
from paramerge.models.registry import published, published_shapes, record_of
from paramerge.models.subsets import select
from paramerge.wording import option

ALL_LAYERS = "all"
"""The subset of every linear and convolution layer."""

BoundaryChoice = Literal["all", "conv"]
"""Whether the rank boundary holds for every layer, or for convolutions alone (as in the paper's Table 3)."""

Layers = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Size:
    """One adapter's size.

    Attributes
    ----------
    layers:
        Layers that the adapter has.
    capped:
        Of these, layers whose rank the boundary made smaller.
    left_alone:
        Layers of the subset where the boundary leaves rank 0.
    not_possible:
        Layers of the subset that the family cannot have: their sides are not divisible as asked, or they are
        convolutions and the family knows linear layers only.
    parameters:
        Numbers stored.
    nbytes:
        Their bytes in ``dtype``; a file has a header besides, of about 0.1 KiB for each tensor.
    """

    family: str
    subset: str
    rank: int
    layers: int
    capped: int
    left_alone: int
    not_possible: int
    parameters: int
    nbytes: int

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        return asdict(self)


def unet_layers(architecture: str) -> dict[str, tuple[int, ...]]:
    """The linear and convolution layers of a published model: diffusers' path to the weight's shape.

    Raises
    ------
    UsageError
        The architecture is not one of :func:`~paramerge.models.registry.published`.
    """
    if architecture not in published():
        raise UsageError(
            "the layers of this architecture are not known",
            where=option("architecture"),
            expected=", ".join(published()),
            found=architecture,
        )
    component = record_of(architecture).component
    return {
        name.path: shape
        for name, shape in published_shapes(architecture).items()
        if name.component == component and len(shape) > 1
    }


def adapter_sizes(
    layers: Layers,
    *,
    families: Sequence[str],
    subsets: Sequence[str],
    ranks: Sequence[int],
    gamma: float | Fraction | None = None,
    boundary: BoundaryChoice = "all",
    kronecker: tuple[int, int] = (64, 4),
    lokr_factor: int = -1,
    dtype: str = "F16",
) -> list[Size]:
    """Every combination of subset, rank and family, in this order; see :func:`adapter_size`."""
    return [
        adapter_size(
            layers,
            family,
            subset,
            SizeSettings(rank, kronecker, lokr_factor),
            gamma=gamma,
            boundary=boundary,
            dtype=dtype,
        )
        for subset in subsets
        for rank in ranks
        for family in families
    ]


def adapter_size(
    layers: Layers,
    family: str,
    subset: str,
    settings: SizeSettings,
    *,
    gamma: float | Fraction | None = None,
    boundary: BoundaryChoice = "all",
    dtype: str = "F16",
) -> Size:
    """The size of one adapter.

    Parameters
    ----------
    layers:
        Path and weight's shape of each layer there is.
    family:
        A key of :func:`~paramerge.adapters.registry.sized`.
    subset:
        A name of :data:`~paramerge.models.subsets.SUBSETS`, several joined by ``+``, or ``all``.
    gamma:
        The rank boundary: ``min(r, floor(gamma * min(d, k)))`` in place of r, for families with a rank; the
        paper has it for PaRa and, in its Table 3, for LoRA too (section 3.2).
    dtype:
        A dtype, by any of its names.

    Raises
    ------
    UsageError
        An unknown family, subset or dtype, a rank below 1, or a subset without layers.
    """
    stored, ranked = _check(family, settings)
    dtype = parse_dtype(dtype, tuple(BITS))
    parameters = counted = capped = left_alone = not_possible = 0
    paths = _selected(subset, layers)
    for path in paths:
        shape = layers[path]
        rank = _bounded(settings.rank, shape, gamma, boundary) if ranked else settings.rank
        if rank == 0:
            left_alone += 1
            continue
        own = SizeSettings(rank, settings.kronecker, settings.lokr_factor)
        numbers = stored(shape, own)
        if numbers is None:
            not_possible += 1
            continue
        counted += 1
        capped += rank < settings.rank
        parameters += numbers
    return Size(
        family,
        subset,
        settings.rank,
        counted,
        capped,
        left_alone,
        not_possible,
        parameters,
        parameters * BITS[dtype] // 8,
    )


def _check(family: str, settings: SizeSettings) -> tuple[Stored, bool]:
    """The family's rule, and whether it has ranks; refuses impossible settings."""
    known = sized()
    if family not in known:
        raise UsageError("unknown family", where=option("families"), expected=", ".join(known), found=family)
    if settings.rank < 1:
        raise UsageError(
            "the rank is out of range", where=option("ranks"), expected="1 or more", found=settings.rank
        )
    if min(settings.kronecker) < 1:
        raise UsageError("a factor has no row", where=option("kronecker"), found=settings.kronecker)
    return known[family]


def _selected(subset: str, layers: Layers) -> list[str]:
    if subset == ALL_LAYERS:
        return list(layers)
    chosen = {path for name in subset.split("+") for path in select(name, layers)}
    return [path for path in layers if path in chosen]


def _bounded(
    rank: int, shape: tuple[int, ...], gamma: float | Fraction | None, boundary: BoundaryChoice
) -> int:
    if gamma is None or (boundary == "conv" and len(shape) == 2):
        return rank
    # a trained weight has full rank: rank(W0) = min(d, k)
    return adjusted_rank(rank, gamma, min(shape[0], math.prod(shape[1:])))
