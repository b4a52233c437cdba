"""A comparison in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from paramerge.cli.render import out, shown
from paramerge.cli.tables import plain_table
from paramerge.compare.compare import Comparison, LayerPair, PairComparison
from paramerge.compare.places import short_name
from paramerge.compare.summary import (
    ChangeTotals,
    LoraTotals,
    MixedTotals,
    ParaTotals,
    Totals,
    grouped,
    severity,
    standing_out,
    totals_of,
)

_SHOWN_LAYERS = 6
_HEADINGS = {
    "para-para": "PaRa and PaRa",
    "para-lora": "PaRa and LoRA",
    "lora-lora": "LoRA and LoRA",
    "para-change": "PaRa and another family",
    "change-change": "other families",
}


def show_comparison(comparison: Comparison, *, all_layers: bool, console: Console = out) -> None:
    """Every pair: the totals, a table by kind of layer, and the layers that stand out."""
    for pair in comparison.pairs:
        names = [comparison.adapters[place].path.name for place in (pair.first, pair.second)]
        console.print(f"\n[bold]{_HEADINGS[pair.kind]}[/bold]")
        for letter, name in zip("AB", names, strict=True):
            console.print(f"{letter}  {shown(name)}")
        totals = totals_of(pair.layers)
        if totals is None:
            console.print("no layer in common: neither order nor way of merging makes a difference")
            continue
        console.print(
            f"{totals.layers} layers in common, {pair.only_first} in A alone, {pair.only_second} in B alone"
        )
        console.print(_table(pair, totals))
        for line in _meaning(totals, _other(pair)):
            console.print(line)
        _show_layers(pair, all_layers, console)


def _table(pair: PairComparison, totals: Totals) -> Table:
    titles, cells = _columns(pair, totals)
    table = plain_table("layers", ">", *(f">{title}" for title in titles))
    for title, layers in grouped(pair.layers):
        found = totals_of(layers)
        if found is not None:
            table.add_row(title, str(len(layers)), *cells(found))
    table.add_row("[bold]all[/bold]", str(totals.layers), *cells(totals))
    return table


def _columns(pair: PairComparison, totals: Totals) -> tuple[list[str], Callable[[Totals], list[str]]]:
    if isinstance(totals, ParaTotals):
        return _para_columns(totals)
    if isinstance(totals, MixedTotals):
        return _mixed_columns(totals, _other(pair))
    if isinstance(totals, ChangeTotals):
        return ["norm A", "norm B", "cosine"], _change_cells
    titles = ["cosine", "with", "against", "out", "chance", "in", "chance"]
    return titles, _lora_cells


def _other(pair: PairComparison) -> str:
    """The adapter that is compared with a PaRa."""
    return "LoRA" if pair.kind == "para-lora" else "other"


def _para_columns(totals: ParaTotals) -> tuple[list[str], Callable[[Totals], list[str]]]:
    base = totals.on_base_largest is not None

    def cells(found: Totals) -> list[str]:
        if not isinstance(found, ParaTotals):
            return []
        ranks = [*found.ranks, found.shared, found.joint_rank, found.sequential_rank]
        last = f"{found.on_base_largest:.1%}" if base else f"{found.friedrichs_mean:.3f}"
        return [*map(str, ranks), f"{found.smallest_angle:.1f}°", f"{found.friedrichs_largest:.3f}", last]

    # 80 columns have room for one of the two
    last = "on W0" if base else "c mean"
    return ["r A", "r B", "shared", "joint", "seq.", "angle", "c max", last], cells


def _mixed_columns(totals: MixedTotals, other: str) -> tuple[list[str], Callable[[Totals], list[str]]]:
    titles = ["r PaRa", f"r {other}", f"{other} first", "worst", "PaRa first"]
    base = totals.refilled_largest is not None

    def cells(found: Totals) -> list[str]:
        if not isinstance(found, MixedTotals):
            return []
        shares = [found.lost_lora_then_para, found.lost_largest, found.lost_para_then_lora]
        ranks = [str(rank) for rank in found.ranks]
        return [
            *ranks,
            *(f"{share:.1%}" for share in shares),
            *([f"{found.refilled_largest:.1%}"] if base else []),
        ]

    return [*titles, *(["refilled"] if base else [])], cells


def _change_cells(found: Totals) -> list[str]:
    if not isinstance(found, ChangeTotals):
        return []
    return [*(f"{norm:.3g}" for norm in found.norms), _signed(found.cosine)]


def _lora_cells(found: Totals) -> list[str]:
    if not isinstance(found, LoraTotals):
        return []
    values = [found.output_overlap, found.output_chance, found.input_overlap, found.input_chance]
    parts = [_signed(found.cosine), f"{found.reinforcing:.3f}", f"{found.cancelling:.3f}"]
    return [*parts, *(f"{value:.3f}" for value in values)]


def _signed(value: float) -> str:
    """``+0.031``, and ``0.000`` for a value that rounds to nothing."""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def _meaning(totals: Totals, other: str) -> list[str]:
    if isinstance(totals, ParaTotals):
        lines = [
            "merged one after the other they are off the joint merge by up to "
            f"{totals.friedrichs_largest:.3f} (2-norm)",
            f"and remove {totals.sequential_rank} directions instead of {totals.joint_rank}",
        ]
        if totals.on_base_largest is not None:
            lines.append(f"on this base by up to {totals.on_base_largest:.2%} of a layer's Frobenius norm")
        return lines
    if isinstance(totals, MixedTotals):
        lines = [
            f"{other} first, the PaRa takes {totals.lost_lora_then_para:.1%} of it (Frobenius norm), "
            f"up to {totals.lost_largest:.1%} of a layer",
            f"PaRa first, the {other} loses nothing",
        ]
        if totals.refilled_largest is not None:
            lines.append(
                f"but it writes back up to {totals.refilled_largest:.1%} of what the PaRa removed of a layer"
            )
        return lines
    verdicts = {
        "reinforce": "they reinforce each other",
        "cancel": "they cancel each other",
        "independent": "they are nearly independent",
    }
    if isinstance(totals, ChangeTotals):
        return [f"cosine {_signed(totals.cosine)}: {verdicts[totals.relation]}"]
    return [
        f"cosine {_signed(totals.cosine)} ({totals.reinforcing:.3f} with, {totals.cancelling:.3f} against): "
        f"{verdicts[totals.relation]}"
    ]


def _show_layers(pair: PairComparison, all_layers: bool, console: Console) -> None:
    layers: Sequence[LayerPair] = pair.layers if all_layers else standing_out(pair.layers, _SHOWN_LAYERS)
    if not layers or (not all_layers and severity(layers[0]) == 0):
        return
    if not all_layers:
        console.print(f"[bold]where they meet most[/bold] (of {len(pair.layers)} layers; --layers for all)")
    titles, cells = _columns_of_layers(pair)
    table = plain_table("layer", *(f">{title}" for title in titles))
    for layer in layers:
        found = totals_of([layer])
        if found is not None:
            table.add_row(shown(short_name(layer.name)), *cells(found))
    console.print(table)


def _columns_of_layers(pair: PairComparison) -> tuple[list[str], Callable[[Totals], list[str]]]:
    kind = pair.kind

    def cells(found: Totals) -> list[str]:
        if isinstance(found, ParaTotals):
            ranks = [*found.ranks, found.shared, found.joint_rank]
            return [*map(str, ranks), f"{found.smallest_angle:.1f}°", f"{found.friedrichs_largest:.3f}"]
        if isinstance(found, MixedTotals):
            return [*map(str, found.ranks), f"{found.lost_lora_then_para:.1%}"]
        if isinstance(found, ChangeTotals):
            return _change_cells(found)
        return [_signed(found.cosine), f"{found.output_overlap:.3f}", f"{found.input_overlap:.3f}"]

    titles = {
        "para-para": ["r A", "r B", "sh.", "joint", "angle", "c"],
        "para-lora": ["r PaRa", "r LoRA", "lost"],
        "para-change": ["r PaRa", "r other", "lost"],
        "change-change": ["norm A", "norm B", "cosine"],
        "lora-lora": ["cosine", "out", "in"],
    }
    return titles[kind], cells
