"""Heat maps as data: a cell for each kind of layer in each block, with its number, its shade and its tip."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from paramerge.compare.changes import ChangePair
from paramerge.compare.compare import LayerPair, PairComparison
from paramerge.compare.pairs import LoraPair, MixedPair, ParaPair
from paramerge.compare.places import (
    columns_in_order,
    component_title,
    group_of,
    place_of,
    short_name,
    sorted_rows,
)

_Pair = TypeVar("_Pair")

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Possible ends of a scale: the first that holds all values is taken."""


@dataclass(frozen=True)
class Metric:
    """One number of a layer that a map can show.

    ``signed`` ones go from -end to end in two colours, the others from 0 to end. ``chance`` is the value for
    unrelated adapters, or None where there is no such number.
    """

    key: str
    title: str
    explanation: str
    value: Callable[[LayerPair], float]
    signed: bool = False
    chance: Callable[[LayerPair], float] | None = None


@dataclass(frozen=True)
class Cell:
    """A cell at (column, row): ``shade`` is 0 to 1 of the colour, ``text`` the number, ``tip`` the rest."""

    column: int
    row: int
    shade: float
    negative: bool
    text: str
    tip: str


@dataclass(frozen=True)
class Panel:
    """One component's cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class HeatMap:
    """One metric on all components; ``end`` is the value at full colour."""

    metric: Metric
    end: float
    panels: tuple[Panel, ...]


def heat_maps(pair: PairComparison) -> list[HeatMap]:
    """Every metric of this pair as a map; none without layers in common."""
    return [_heat_map(metric, pair.layers) for metric in metrics_of(pair)] if pair.layers else []


def metrics_of(pair: PairComparison) -> list[Metric]:
    """The numbers that a map can show for this pair; those of the base where there was one."""
    metrics = _METRICS[pair.kind]
    return [metric for metric in metrics if not any(math.isnan(metric.value(layer)) for layer in pair.layers)]


def _heat_map(metric: Metric, layers: Sequence[LayerPair]) -> HeatMap:
    largest = max(abs(metric.value(layer)) for layer in layers)
    end = next((step for step in _STEPS if largest <= step), largest)
    components = sorted({(group_of(layer.name)[0], layer.name.component) for layer in layers})
    panels = tuple(
        _panel(metric, end, component, [layer for layer in layers if layer.name.component == component])
        for _, component in components
    )
    return HeatMap(metric, end, panels)


def _panel(metric: Metric, end: float, component: str, layers: Sequence[LayerPair]) -> Panel:
    places: dict[tuple[str, str], list[LayerPair]] = {}
    for layer in layers:
        place = place_of(layer.name)
        places.setdefault((place.row, place.column), []).append(layer)
    rows = sorted_rows([row for row, _ in places])
    columns = columns_in_order({column for _, column in places})
    cells = tuple(
        _cell(metric, end, columns.index(column), rows.index(row), f"{row}, {column}", at_place)
        for (row, column), at_place in places.items()
    )
    return Panel(component_title(component), tuple(columns), tuple(rows), cells)


def _cell(metric: Metric, end: float, column: int, row: int, where: str, layers: Sequence[LayerPair]) -> Cell:
    """The layers of one place, shown by the one whose number is the largest in size."""
    worst = max(layers, key=lambda layer: abs(metric.value(layer)))
    value = metric.value(worst)
    lines = [where, f"{metric.title}: {_number(value, metric.signed, 4)}"]
    if len(layers) > 1:
        mean = math.fsum(metric.value(layer) for layer in layers) / len(layers)
        lines[1] += f" (largest of {len(layers)}, mean {_number(mean, metric.signed, 4)})"
    if metric.chance is not None:
        lines.append(f"unrelated adapters: {_number(metric.chance(worst), False, 4)}")
    lines += [_details(worst), short_name(worst.name)]
    return Cell(
        column=column,
        row=row,
        shade=min(1.0, abs(value) / end),
        negative=value < 0,
        text=_number(value, metric.signed, 2 if end > 0.05 else 3),
        tip="\n".join(lines),
    )


def _details(layer: LayerPair) -> str:
    ranks = f"ranks {layer.ranks[0]} and {layer.ranks[1]}"
    if isinstance(layer, ParaPair):
        smallest = f", smallest angle {layer.angles[0]:.2f}°" if layer.angles else ""
        return f"{ranks}, {layer.shared} shared, joint rank {layer.joint_rank}{smallest}"
    if isinstance(layer, MixedPair):
        return f"{ranks}, norm of the change {layer.norm:.3g}"
    if isinstance(layer, ChangePair):
        return f"norms {layer.norms[0]:.3g} and {layer.norms[1]:.3g}"
    return f"{ranks}, {layer.reinforcing:.3f} with and {layer.cancelling:.3f} against each other"


def _number(value: float, signed: bool, digits: int) -> str:
    """``.47``, ``1.0``, ``+.03``: short enough for a cell."""
    text = f"{abs(value):.{digits}f}"
    if text.startswith("0.") and digits < 4:
        text = text[1:]
    sign = "\N{MINUS SIGN}" if value < 0 else "+" if signed else ""
    return sign + text if text.strip(".0") else "0"


def _of(kind: type[_Pair], value: Callable[[_Pair], float]) -> Callable[[LayerPair], float]:
    return lambda layer: value(layer) if isinstance(layer, kind) else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


_METRICS: dict[str, list[Metric]] = {
    "para-para": [
        Metric(
            "friedrichs",
            "Friedrichs cosine",
            "What merging one after the other gets wrong (2-norm): 0, the order does not matter; near 1, the "
            "sequence leaves directions that the joint merge removes.",
            _of(ParaPair, lambda layer: layer.friedrichs),
            chance=_of(ParaPair, lambda layer: layer.chance),
        ),
        Metric(
            "shared",
            "Shared directions",
            "The share of the smaller adapter's directions that the other removes too.",
            _of(ParaPair, lambda layer: layer.shared / max(1, min(layer.ranks))),
        ),
        Metric(
            "on_base",
            "Distance on the base",
            "How far the sequence is from the joint merge on this base's weights (relative Frobenius norm).",
            _of(ParaPair, lambda layer: _or_nan(layer.on_base)),
        ),
    ],
    "para-lora": [
        Metric(
            "lost",
            "LoRA lost, LoRA first",
            "The share of the LoRA that a PaRa after it removes (Frobenius norm). PaRa first, none is lost.",
            _of(MixedPair, lambda layer: layer.lost),
            chance=_of(MixedPair, lambda layer: layer.chance),
        ),
        Metric(
            "refilled",
            "Refilled, PaRa first",
            "The LoRA's part in the removed directions, relative to the base's part.",
            _of(MixedPair, lambda layer: _or_nan(layer.refilled)),
        ),
    ],
    "lora-lora": [
        Metric(
            "cosine",
            "Cosine",
            "Above 0 the two changes reinforce each other, below 0 they cancel.",
            _of(LoraPair, lambda layer: layer.cosine),
            signed=True,
        ),
        Metric(
            "outputs",
            "Output overlap",
            "How much of the output directions they share: the mean squared cosine of the principal angles.",
            _of(LoraPair, lambda layer: layer.output_overlap),
            chance=_of(LoraPair, lambda layer: layer.output_chance),
        ),
        Metric(
            "inputs",
            "Input overlap",
            "How much of the input directions they share: the mean squared cosine of the principal angles.",
            _of(LoraPair, lambda layer: layer.input_overlap),
            chance=_of(LoraPair, lambda layer: layer.input_chance),
        ),
    ],
}
_METRICS["para-change"] = [
    replace(
        _METRICS["para-lora"][0],
        title="Lost, PaRa last",
        explanation="The share of the other adapter's change that a PaRa after it removes (Frobenius norm).",
    ),
    replace(
        _METRICS["para-lora"][1],
        explanation="The other's part in the removed directions, relative to the base's part.",
    ),
]
_METRICS["change-change"] = [
    replace(_METRICS["lora-lora"][0], value=_of(ChangePair, lambda layer: layer.cosine))
]
