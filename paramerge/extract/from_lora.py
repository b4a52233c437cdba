"""A PaRa made from a LoRA: the output directions that the LoRA writes to most.

This recipe is paramerge's own; the PaRa paper trains its bases and has none like it. A layer's change ``B A``
writes to the span of its left singular vectors, the first of them most. Removing those directions takes from
the base the part that the LoRA would have overwritten: a first PaRa to try things on, not the equal of a
trained one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from paramerge.adapters.adapter import Adapter
from paramerge.adapters.lora import LoraModule
from paramerge.adapters.overflow import beyond_float64, overflowing
from paramerge.adapters.unread import refuse_unread
from paramerge.algebra import leading_output_directions, lora_loss
from paramerge.apply.amounts import check_amounts
from paramerge.errors import FamilyError, UsageError
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class TakenLayer:
    """The directions taken from one layer of a LoRA.

    Attributes
    ----------
    directions:
        Q: (d, r) float64 with orthonormal columns, the strongest first.
    lora_rank:
        The LoRA's rank in this layer, at least r.
    norm:
        ``||scale * B A||``, Frobenius.
    captured:
        The share of the squared norm in these directions, ``||Q^T B A||^2 / ||B A||^2``.
    """

    name: ModuleName
    directions: np.ndarray
    lora_rank: int
    norm: float
    captured: float

    @property
    def rank(self) -> int:
        """The number of directions r."""
        return int(self.directions.shape[1])


@dataclass(frozen=True)
class Extraction:
    """The layers taken, and those where the LoRA is zero and has no directions to take."""

    layers: tuple[TakenLayer, ...]
    empty: tuple[ModuleName, ...]

    @property
    def captured(self) -> float:
        """The share of the whole LoRA's squared norm, alphas folded in, that the directions hold."""
        return held_share(self.layers)


def held_share(layers: Sequence[TakenLayer]) -> float:
    """The share of the squared norm of these layers together that their directions hold."""
    largest = max((layer.norm for layer in layers), default=0.0)
    parts = [(layer.norm / largest) ** 2 for layer in layers]  # tiny norms have squares that are 0
    held = math.fsum(layer.captured * part for layer, part in zip(layers, parts, strict=True))
    return held / math.fsum(parts) if parts else 0.0


def extract_para(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    allow_unmatched: bool = False,
) -> Extraction:
    """Take from each layer of a LoRA its leading output directions.

    Parameters
    ----------
    rank:
        The number of directions of every layer; fewer where the LoRA's own rank is lower.
    energy:
        Or the share of each layer's squared norm to hold, in (0, 1]: the fewest directions that do.
    allow_unmatched:
        Leave out keys that are not understood, instead of refusing.

    Raises
    ------
    UsageError
        Neither or both of ``rank`` and ``energy``, or one out of range; a LoRA that is zero everywhere.
    FamilyError
        The adapter is no LoRA.
    UnmatchedError
        Keys that are not understood, without ``allow_unmatched``.
    NonFiniteError
        NaN or Inf in a factor.
    """
    refuse_unread(adapter, allowed=allow_unmatched)
    check_amounts(rank, energy, one=True)
    if adapter.family != "lora":
        raise FamilyError(
            "this adapter is no LoRA, so no directions can be extracted",
            where=adapter.path,
            expected="a LoRA",
            found=", ".join(adapter.families),
        )
    layers, empty = [], []
    for module in _loras(adapter):
        with overflowing():
            layer = _extract_layer(module, rank, energy)
        if layer is None:
            empty.append(module.name)
        else:
            layers.append(layer)
    if not layers:
        raise UsageError(
            "this LoRA is zero in every layer: it has no directions",
            where=adapter.path,
            expected="a LoRA that was trained",
            found=f"{len(empty)} layers of zeros",
        )
    return Extraction(tuple(layers), tuple(empty))


def _extract_layer(module: LoraModule, rank: int | None, energy: float | None) -> TakenLayer | None:
    """The directions of one layer; None where the LoRA is zero."""
    B, A = (factor.astype(np.float64) for factor in module.factors())
    if not math.isfinite(norm := module.norm()):
        raise beyond_float64(module.name)
    if norm == 0:  # also where an alpha of 0 switches the layer off
        return None
    Q = leading_output_directions(B, A, rank=rank, energy=energy)
    if Q.shape[1] == 0:
        return None
    return TakenLayer(module.name, Q, module.rank, norm, lora_loss(Q, B, A) ** 2)


def _loras(adapter: Adapter) -> Iterable[LoraModule]:
    return (module for module in adapter.modules.values() if isinstance(module, LoraModule))
