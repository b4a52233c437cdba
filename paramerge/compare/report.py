"""The comparison as one HTML file that needs nothing but itself: no network, no fonts, no scripts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2

from paramerge.adapters import Adapter
from paramerge.compare.changes import ChangePair
from paramerge.compare.compare import Comparison, LayerPair, PairComparison
from paramerge.compare.heatmap import HeatMap, heat_maps
from paramerge.compare.pairs import LoraPair, MixedPair, ParaPair
from paramerge.compare.places import component_title, short_name
from paramerge.compare.summary import ChangeTotals, LoraTotals, MixedTotals, ParaTotals, Totals, totals_of
from paramerge.files.writer import write_bytes
from paramerge.version import __version__


@dataclass(frozen=True)
class Value:
    """A cell of the table: the text shown and the value it is sorted by."""

    text: str
    key: float | str


@dataclass(frozen=True)
class Section:
    """One pair on the page."""

    anchor: str
    first: str
    second: str
    first_name: str
    second_name: str
    sentence: str
    tiles: tuple[tuple[str, str], ...]
    maps: tuple[HeatMap, ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    headline: str
    apart: tuple[int, int]


def write_report(comparison: Comparison, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the page, whole or not at all; with ``overwrite`` also in the place of a file.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    write_bytes(path, render_report(comparison).encode("utf-8", "backslashreplace"), overwrite=overwrite)


def render_report(comparison: Comparison) -> str:
    """The page as text; file names and all else that comes from outside is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((files(__package__) / "report.html").read_text(encoding="utf-8"))
    return template.render(
        adapters=[(_letter(i), adapter) for i, adapter in enumerate(comparison.adapters)],
        base=None if comparison.base is None else comparison.base.path.name,
        warnings=comparison.warnings,
        sections=[_section(comparison.adapters, pair) for pair in comparison.pairs],
        version=__version__,
    )


def _section(adapters: Sequence[Adapter], pair: PairComparison) -> Section:
    totals = totals_of(pair.layers)
    first, second = _letter(pair.first), _letter(pair.second)
    return Section(
        anchor=f"{first}-{second}",
        first=first,
        second=second,
        first_name=adapters[pair.first].path.name,
        second_name=adapters[pair.second].path.name,
        sentence=_sentence(totals, first, second),
        tiles=() if totals is None else tuple(_tiles(totals, first, second)),
        maps=tuple(heat_maps(pair)),
        headings=_headings(pair, first, second),
        rows=tuple(_row(layer) for layer in pair.layers),
        headline=_headline(totals),
        apart=(pair.only_first, pair.only_second),
    )


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"#{place + 1}"


def _headline(totals: Totals | None) -> str:
    if isinstance(totals, ParaTotals):
        return f"c = {totals.friedrichs_largest:.3f}"
    if isinstance(totals, MixedTotals):
        return f"{totals.lost_lora_then_para:.1%} lost"
    if isinstance(totals, LoraTotals | ChangeTotals):
        return f"cos {_signed(totals.cosine, 3)}"
    return "apart"


def _sentence(totals: Totals | None, first: str, second: str) -> str:
    if isinstance(totals, ParaTotals):
        return (
            f"Merged one after the other, {first} and {second} are off their joint merge by up to "
            f"{totals.friedrichs_largest:.3f} (2-norm of a layer's operator), and remove "
            f"{totals.sequential_rank} directions instead of {totals.joint_rank}."
        )
    if isinstance(totals, MixedTotals):
        return (
            f"Baked after {second}, the PaRa {first} takes {totals.lost_lora_then_para:.1%} of it "
            f"(Frobenius norm over all layers), and up to {totals.lost_largest:.1%} of a layer. Baked before "
            f"it, nothing of {second} is lost."
        )
    if isinstance(totals, LoraTotals | ChangeTotals):
        verdict = {
            "reinforce": f"{first} and {second} reinforce each other",
            "cancel": f"{first} and {second} cancel each other",
            "independent": f"{first} and {second} are nearly independent",
        }[totals.relation]
        return (
            f"{verdict}: the cosine between their changes, over all layers, is {_signed(totals.cosine, 3)}."
        )
    return f"{first} and {second} have no layer in common: neither order nor way of merging matters."


def _tiles(totals: Totals, first: str, second: str) -> list[tuple[str, str]]:
    """Label and number, the most telling first."""
    if isinstance(totals, ParaTotals):
        tiles = [
            ("largest Friedrichs cosine", f"{totals.friedrichs_largest:.3f}"),
            ("mean over layers", f"{totals.friedrichs_mean:.3f}"),
            ("smallest angle", f"{totals.smallest_angle:.1f}°"),
            ("shared directions", f"{totals.shared:,}"),
            ("joint rank", f"{totals.joint_rank:,} of {sum(totals.ranks):,}"),
        ]
        if totals.on_base_largest is not None:
            tiles.append(("largest distance on the base", f"{totals.on_base_largest:.2%}"))
        return [*tiles, ("layers in common", str(totals.layers))]
    if isinstance(totals, MixedTotals):
        tiles = [
            (f"of {second} lost, PaRa last", f"{totals.lost_lora_then_para:.1%}"),
            ("worst layer", f"{totals.lost_largest:.1%}"),
            (f"of {second} lost, PaRa first", "0%"),
        ]
        if totals.refilled_largest is not None:
            tiles.append(("refilled at most, PaRa first", f"{totals.refilled_largest:.1%}"))
        return [*tiles, ("layers in common", str(totals.layers))]
    if isinstance(totals, ChangeTotals):
        norms = [
            (f"norm of {name}", f"{norm:.3g}")
            for name, norm in zip((first, second), totals.norms, strict=True)
        ]
        return [("cosine", _signed(totals.cosine, 3)), *norms, ("layers in common", str(totals.layers))]
    return [
        ("cosine", _signed(totals.cosine, 3)),
        ("with each other", f"{totals.reinforcing:.3f}"),
        ("against each other", f"{totals.cancelling:.3f}"),
        ("output overlap (chance)", f"{totals.output_overlap:.3f} ({totals.output_chance:.3f})"),
        ("input overlap (chance)", f"{totals.input_overlap:.3f} ({totals.input_chance:.3f})"),
        ("layers in common", str(totals.layers)),
    ]


def _headings(pair: PairComparison, first: str, second: str) -> tuple[str, ...]:
    ranks = ("component", "layer", f"rank {first}", f"rank {second}")
    if pair.kind == "para-para":
        on_base = any(isinstance(layer, ParaPair) and layer.on_base is not None for layer in pair.layers)
        base = ("distance on base",) if on_base else ()
        return (*ranks, "shared", "joint", "sequential", "smallest angle", "cosine c", "c by chance", *base)
    if pair.kind == "change-change":
        return (*ranks, f"norm {first}", f"norm {second}", "cosine")
    if pair.kind in ("para-lora", "para-change"):
        refilled = any(isinstance(layer, MixedPair) and layer.refilled is not None for layer in pair.layers)
        return (*ranks, "norm", "lost, PaRa last", "by chance", *(("refilled",) if refilled else ()))
    overlaps = ("output overlap", "by chance", "input overlap", "by chance")
    return (*ranks, "cosine", "with", "against", *overlaps)


def _row(layer: LayerPair) -> tuple[Value, ...]:
    start = [
        Value(component_title(layer.name.component), layer.name.component),
        Value(short_name(layer.name), short_name(layer.name)),
        *(Value(str(rank), rank) for rank in layer.ranks),
    ]
    if isinstance(layer, ParaPair):
        smallest = layer.angles[0] if layer.angles else 90.0
        numbers = [
            *(Value(str(count), count) for count in (layer.shared, layer.joint_rank, layer.sequential_rank)),
            Value(f"{smallest:.2f}°", smallest),
            _decimal(layer.friedrichs),
            _decimal(layer.chance),
            *([] if layer.on_base is None else [_percent(layer.on_base)]),
        ]
    elif isinstance(layer, MixedPair):
        numbers = [
            Value(f"{layer.norm:.4g}", layer.norm),
            _percent(layer.lost),
            _percent(layer.chance),
            *([] if layer.refilled is None else [_percent(layer.refilled)]),
        ]
    elif isinstance(layer, ChangePair):
        numbers = [Value(f"{norm:.4g}", norm) for norm in layer.norms]
        numbers.append(Value(_signed(layer.cosine, 4), layer.cosine))
    else:
        numbers = _lora_numbers(layer)
    return (*start, *numbers)


def _lora_numbers(layer: LoraPair) -> list[Value]:
    overlaps = (layer.output_overlap, layer.output_chance, layer.input_overlap, layer.input_chance)
    parts = [_decimal(layer.reinforcing), _decimal(layer.cancelling)]
    return [Value(_signed(layer.cosine, 4), layer.cosine), *parts, *map(_decimal, overlaps)]


def _decimal(value: float) -> Value:
    return Value(f"{value:.4f}", value)


def _signed(value: float, digits: int) -> str:
    """``+0.031``, and ``0.000`` for a value that rounds to nothing."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0.0:.{digits}f}"


def _percent(value: float) -> Value:
    return Value(f"{value:.2%}", value)
