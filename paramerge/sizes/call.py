"""``paramerge.sizes``: how large adapters would be."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from paramerge.sizes.sizes import BoundaryChoice, Size, adapter_sizes, unet_layers


def sizes(
    architecture: str = "sdxl",
    *,
    families: Sequence[str] = ("para", "lora"),
    subsets: Sequence[str] = ("fmt",),
    ranks: Sequence[int] = (16,),
    gamma: float | Fraction | None = None,
    boundary: BoundaryChoice = "all",
    kronecker: tuple[int, int] = (64, 4),
    lokr_factor: int = -1,
    dtype: str = "fp16",
) -> list[Size]:
    """Parameters and bytes of adapters, from the architecture alone: ``sizes("sdxl", ranks=[4, 16])``.

    Every combination of subset, rank and family, in this order.

    Parameters
    ----------
    architecture:
        One of :func:`~paramerge.models.registry.published`.
    families, subsets, ranks, gamma, boundary, kronecker, lokr_factor, dtype:
        See :func:`paramerge.sizes.sizes.adapter_size`.

    Raises
    ------
    UsageError
        An unknown architecture, family, subset or dtype, a rank below 1, or a subset without layers.
    """
    return adapter_sizes(
        unet_layers(architecture),
        families=families,
        subsets=subsets,
        ranks=ranks,
        gamma=gamma,
        boundary=boundary,
        kronecker=kronecker,
        lokr_factor=lokr_factor,
        dtype=dtype,
    )
