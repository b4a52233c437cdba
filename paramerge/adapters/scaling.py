"""The scale of a layer whose file has no alpha of its own for it."""

from __future__ import annotations

from typing import NamedTuple

from paramerge.models.names import ModuleName


class Scaling(NamedTuple):
    """The alpha and the rule of a layer; see :class:`~paramerge.adapters.lora.LoraModule`."""

    alpha: float | None = None
    rslora: bool = False


def scale_by_rank(name: ModuleName, rank: int) -> Scaling:
    """alpha = rank: the rule of every dialect for a layer without alpha."""
    return Scaling()
