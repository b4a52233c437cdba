"""A pair of adapters in a few numbers: totals, groups of layers by kind, and the layers that stand out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

from paramerge.compare.changes import ChangePair
from paramerge.compare.compare import Comparison, LayerPair, PairComparison
from paramerge.compare.pairs import LoraPair, MixedPair, ParaPair, relation_of
from paramerge.compare.places import group_of


@dataclass(frozen=True)
class ParaTotals:
    """PaRa and PaRa: ranks and directions summed over layers, the largest and the mean Friedrichs cosine."""

    layers: int
    ranks: tuple[int, int]
    shared: int
    joint_rank: int
    sequential_rank: int
    friedrichs_largest: float
    friedrichs_mean: float
    smallest_angle: float
    on_base_largest: float | None


@dataclass(frozen=True)
class MixedTotals:
    """PaRa and LoRA: the share of the LoRA's norm over all these layers that is lost in each order."""

    layers: int
    ranks: tuple[int, int]
    lost_lora_then_para: float
    lost_para_then_lora: float
    lost_largest: float
    refilled_largest: float | None


@dataclass(frozen=True)
class LoraTotals:
    """LoRA and LoRA: the cosine of the changes of all layers as one vector, its parts, mean overlaps."""

    layers: int
    ranks: tuple[int, int]
    cosine: float
    reinforcing: float
    cancelling: float
    relation: str
    output_overlap: float
    input_overlap: float
    output_chance: float
    input_chance: float


@dataclass(frozen=True)
class ChangeTotals:
    """Adapters of other families: norms over all layers, the cosine of their changes as one vector."""

    layers: int
    ranks: tuple[int, int]
    norms: tuple[float, float]
    cosine: float
    relation: str


Totals = ParaTotals | MixedTotals | LoraTotals | ChangeTotals


def totals_of(layers: Sequence[LayerPair]) -> Totals | None:
    """The totals over layers of one pair; None without layers."""
    if not layers:
        return None
    first = layers[0]
    if isinstance(first, ParaPair):
        return _para_totals(cast(Sequence[ParaPair], layers))
    if isinstance(first, MixedPair):
        return _mixed_totals(cast(Sequence[MixedPair], layers))
    if isinstance(first, ChangePair):
        return _change_totals(cast(Sequence[ChangePair], layers))
    return _lora_totals(cast(Sequence[LoraPair], layers))


def grouped(layers: Sequence[LayerPair]) -> list[tuple[str, list[LayerPair]]]:
    """The layers by component and kind, in the order of components."""
    groups: dict[tuple[int, str], list[LayerPair]] = {}
    for layer in layers:
        groups.setdefault(group_of(layer.name), []).append(layer)
    return [(title, groups[order, title]) for order, title in sorted(groups)]


def severity(layer: LayerPair) -> float:
    """The number that layers are ranked by: Friedrichs cosine, share lost, or the size of the cosine."""
    if isinstance(layer, ParaPair):
        return layer.friedrichs
    if isinstance(layer, MixedPair):
        return layer.lost
    return abs(layer.cosine)


def standing_out(layers: Sequence[LayerPair], count: int) -> list[LayerPair]:
    """The layers where the two adapters meet most, the most first."""
    return sorted(layers, key=lambda layer: (-severity(layer), str(layer.name)))[:count]


def as_dict(comparison: Comparison) -> dict[str, object]:
    """The whole comparison as JSON-ready data."""
    return {
        "adapters": [
            {
                "file": str(adapter.path),
                "family": adapter.family,
                "dialect": adapter.dialect,
                "architecture": adapter.architecture,
                "layers": len(adapter.modules),
            }
            for adapter in comparison.adapters
        ],
        "base": None if comparison.base is None else str(comparison.base.path),
        "pairs": [_pair_dict(pair) for pair in comparison.pairs],
        "warnings": list(comparison.warnings),
    }


def _pair_dict(pair: PairComparison) -> dict[str, object]:
    totals = totals_of(pair.layers)
    return {
        "first": pair.first,
        "second": pair.second,
        "kind": pair.kind,
        "only_first": pair.only_first,
        "only_second": pair.only_second,
        "total": None if totals is None else asdict(totals),
        "layers": [_layer_dict(layer) for layer in pair.layers],
    }


def _layer_dict(layer: LayerPair) -> dict[str, object]:
    content = asdict(layer)
    content["name"] = str(layer.name)
    if isinstance(layer, LoraPair | ChangePair):
        content["relation"] = layer.relation
    return content


def _para_totals(layers: Sequence[ParaPair]) -> ParaTotals:
    angles = [layer.angles[0] for layer in layers if layer.angles]
    on_base = [layer.on_base for layer in layers if layer.on_base is not None]
    return ParaTotals(
        layers=len(layers),
        ranks=_summed_ranks(layers),
        shared=sum(layer.shared for layer in layers),
        joint_rank=sum(layer.joint_rank for layer in layers),
        sequential_rank=sum(layer.sequential_rank for layer in layers),
        friedrichs_largest=max(layer.friedrichs for layer in layers),
        friedrichs_mean=_mean([layer.friedrichs for layer in layers]),
        smallest_angle=min(angles, default=90.0),
        on_base_largest=max(on_base, default=None),
    )


def _mixed_totals(layers: Sequence[MixedPair]) -> MixedTotals:
    whole = math.hypot(*(layer.norm for layer in layers))
    lost = math.hypot(*(layer.lost * layer.norm for layer in layers))
    refilled = [layer.refilled for layer in layers if layer.refilled is not None]
    return MixedTotals(
        layers=len(layers),
        ranks=_summed_ranks(layers),
        lost_lora_then_para=lost / whole if whole else 0.0,
        lost_para_then_lora=0.0,
        lost_largest=max(layer.lost for layer in layers),
        refilled_largest=max(refilled, default=None),
    )


def _lora_totals(layers: Sequence[LoraPair]) -> LoraTotals:
    norms = [math.hypot(*(layer.norms[side] for layer in layers)) for side in (0, 1)]
    scale = norms[0] * norms[1]

    def overall(values: Sequence[float]) -> float:
        weights = [layer.norms[0] * layer.norms[1] for layer in layers]
        return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / scale if scale else 0.0

    cosine = overall([layer.cosine for layer in layers])
    return LoraTotals(
        layers=len(layers),
        ranks=_summed_ranks(layers),
        cosine=cosine,
        reinforcing=overall([layer.reinforcing for layer in layers]),
        cancelling=overall([layer.cancelling for layer in layers]),
        relation=relation_of(cosine),
        output_overlap=_mean([layer.output_overlap for layer in layers]),
        input_overlap=_mean([layer.input_overlap for layer in layers]),
        output_chance=_mean([layer.output_chance for layer in layers]),
        input_chance=_mean([layer.input_chance for layer in layers]),
    )


def _change_totals(layers: Sequence[ChangePair]) -> ChangeTotals:
    first, second = (math.hypot(*(layer.norms[side] for layer in layers)) for side in (0, 1))
    product = math.fsum(layer.cosine * layer.norms[0] * layer.norms[1] for layer in layers)
    cosine = product / (first * second) if first and second else 0.0
    return ChangeTotals(len(layers), _summed_ranks(layers), (first, second), cosine, relation_of(cosine))


def _summed_ranks(layers: Sequence[LayerPair]) -> tuple[int, int]:
    return sum(layer.ranks[0] for layer in layers), sum(layer.ranks[1] for layer in layers)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
