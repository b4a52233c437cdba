"""A merge of adapters in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from paramerge.cli.render import gigabytes, out, shown
from paramerge.cli.tables import plain_table
from paramerge.compare.places import group_of, short_name
from paramerge.merge.report import MergedLayer, MergeReport

_SHOWN_LAYERS = 5


def show_merge(report: MergeReport, *, all_layers: bool, console: Console = out) -> None:
    """The inputs, the outcome of the layers by kind, and the file."""
    for letter, given in zip(_letters(report), report.inputs, strict=True):
        scale = "" if given.scale == 1 else f" @ {given.scale:g}"
        console.print(f"{letter}  {shown(given.path.name)}{scale}: {given.family}, {given.layers} layers")
    console.print(_table(report))
    if all_layers:
        _show_layers(report, report.layers, console)
    elif report.family == "lora" and report.error:
        worst = sorted(report.layers, key=lambda layer: -layer.error)[:_SHOWN_LAYERS]
        console.print("[bold]most lost to truncation[/bold] (--layers for all)")
        _show_layers(report, worst, console)
    for line in _remarks(report):
        console.print(line)
    written = sum(layer.rank > 0 for layer in report.layers)
    size = gigabytes(report.bytes)
    console.print(f"[bold]{shown(report.output)}[/bold]  {report.family}, {written} layers, {size}")


def _table(report: MergeReport) -> Table:
    lora = report.family == "lora"
    bounded = any(layer.limit is not None for layer in report.layers)
    table = plain_table(
        "layers",
        ">",
        *(f">r {letter}" for letter in _letters(report)),
        ">sum" if lora else ">joint",
        *([">limit"] if bounded else []),
        ">rank",
        *([">error"] if lora else []),
    )
    for kind, layers in _by_kind(report.layers):
        cells = [kind, str(len(layers))]
        cells += [_span(layer.ranks[i] for layer in layers) for i in range(len(report.inputs))]
        cells.append(_span(layer.full_rank for layer in layers))
        if bounded:
            cells.append(_span(layer.limit for layer in layers if layer.limit is not None))
        cells.append(_span(layer.rank for layer in layers))
        if lora:
            cells.append(_percent(max(layer.error for layer in layers)))
        table.add_row(*cells)
    return table


def _by_kind(layers: Sequence[MergedLayer]) -> Iterable[tuple[str, list[MergedLayer]]]:
    groups: dict[tuple[int, str], list[MergedLayer]] = {}
    for layer in layers:
        groups.setdefault(group_of(layer.name), []).append(layer)
    return [(title, groups[order, title]) for order, title in sorted(groups)]


def _show_layers(report: MergeReport, layers: Sequence[MergedLayer], console: Console) -> None:
    for layer in layers:
        ranks = " + ".join(map(str, layer.ranks))
        text = f"  {short_name(layer.name)}: {ranks} -> {layer.rank}"
        if layer.limit is not None:
            text += f" of {layer.full_rank}, limit {layer.limit}"
        if layer.kept_energy is not None:
            text += f", {layer.kept_energy:.1%} of the energy"
        if layer.error:
            text += f", {_percent(layer.error)} lost"
        console.print(shown(text), soft_wrap=True)


def _remarks(report: MergeReport) -> list[str]:
    remarks = []
    if report.left_out:
        reason = "the rank boundary allows none" if report.family == "para" else "their sum is zero"
        remarks.append(f"[yellow]{len(report.left_out)} layers are left out[/yellow]: {reason}")
    dependent = sum(layer.dependent for layer in report.layers)
    if dependent:
        remarks.append(f"{dependent} stored columns were dependent on others: they name no directions")
    dropped = sum(layer.full_rank - layer.rank for layer in report.layers)
    if report.family == "para" and dropped:
        remarks.append(f"{dropped} directions dropped at the boundary, kept by {report.options.keep}")
    if report.family == "lora":
        remarks.append(
            f"lost to truncation {_percent(report.error)}, "
            f"to rounding as {report.options.dtype} {_percent(report.rounding)} (of the Frobenius norm)"
        )
    return remarks


def _letters(report: MergeReport) -> list[str]:
    return [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(report.inputs))]


def _span(values: Iterable[int]) -> str:
    """``8``, ``4-16``, or ``-`` where there is nothing."""
    found = sorted(set(values))
    if not found or found == [0]:
        return "-"
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def _percent(share: float) -> str:
    """A relative error: ``0`` where nothing was lost, ``1.2e-04`` below a thousandth, else percent."""
    if share == 0:
        return "0"
    return f"{share:.2%}" if share >= 1e-3 else f"{share:.1e}"
