"""An explanation in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from paramerge.adapters.registry import label
from paramerge.cli.render import out, shown
from paramerge.compare.places import short_name
from paramerge.explain.findings import AdapterFinding, Explanation, LayerFinding
from paramerge.explain.summary import grouped, strength_text, worst

_SHOWN_LAYERS = 6
_SHADES = " ░▒▓█"


def show_explanation(found: Explanation, *, all_layers: bool, console: Console = out) -> None:
    """The adapters, their order, where the change is and what is left of it, and the recipe's claims."""
    changed, every = len(found.layers), len(found.layers) + found.unchanged
    console.print(f"[bold]{shown(found.file)}[/bold] and its base {shown(found.base)}: "
                  f"{changed} of {every} layers differ")  # fmt: skip
    if found.adapters:
        console.print(_adapters(found))
        for finding in found.adapters:
            for line in _remarks(finding):
                console.print(f"[dim]{shown(finding.name)}: {line}[/dim]")
    if text := _order(found):
        console.print(text)
    if found.layers:
        console.print(_groups(found))
        _show_layers(found, all_layers, console)
        console.print(_left(found))
    if found.beside:
        console.print(f"{len(found.beside)} tensors that no adapter reaches differ, too: "
                      f"{shown(', '.join(found.beside[:3]))}")  # fmt: skip
    for claim in found.claims:
        verdict = {True: "agrees", False: "does not agree", None: "not compared"}[claim.agrees]
        reason = f": {claim.reason}" if claim.reason else ""
        console.print(f"recipe: {shown(claim.name)} @ {claim.strength:g}  {verdict}{shown(reason)}")
    for name, reason in found.left_out.items():
        console.print(f"[dim]not looked for: {shown(name)}: {shown(reason)}[/dim]")


def _adapters(found: Explanation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("adapter", overflow="fold")
    table.add_column("family")
    table.add_column("strength", justify="right", no_wrap=True)
    table.add_column("layers", justify="right")
    table.add_column("size", justify="right")
    for finding in found.adapters:
        there = finding.verdict == "there"
        layers = str(finding.changed)
        if finding.changed != finding.layers:
            layers += f"/{finding.layers}"
        table.add_row(
            f"[bold]{shown(finding.name)}[/bold]" if there else shown(finding.name),
            shown(label(finding.family)),
            _strength(finding),
            layers,
            f"{finding.share:.1%}" if there else "",
        )  # fmt: skip
    return table


def _strength(finding: AdapterFinding) -> str:
    if finding.verdict == "there":
        return strength_text(finding.strength, finding.bar)
    if finding.verdict == "unclear":
        return "cannot be told"
    return f"not in it (at most {finding.most:.2g})"


def _remarks(finding: AdapterFinding) -> list[str]:
    lines = []
    if finding.like:
        lines.append(f"cannot be told apart from {shown(', '.join(finding.like))}")
    elif finding.verdict == "unclear":
        lines.append(
            f"its strengths in single layers ({finding.lowest:.2g} to {finding.highest:.2g}) scatter more "
            "than their mean: something like it may be there instead"
        )
    elif finding.verdict == "there" and finding.uneven:
        lines.append(f"not one strength: {finding.lowest:.3g} to {finding.highest:.3g} in single layers")
    directions = finding.directions
    if directions is not None and (directions.gone or directions.refilled or finding.verdict == "there"):
        text = f"{directions.gone} of {directions.all} directions are gone"
        if directions.refilled:
            text += f", {directions.refilled} more but for what other adapters add there"
        if directions.cut:
            text += f"; within a rank boundary in {directions.cut} layers"
        lines.append(text)
    return lines


def _order(found: Explanation) -> str:
    order = found.order
    if sum(map(len, order.steps)) < 2:
        return ""
    if not order.matters:
        return "order: any, it makes no difference"
    text = _steps(order.steps)
    if order.told:
        return f"order: {text}"
    return f"order: cannot be told; {text}, or {_steps(order.second)}"


def _steps(steps: Sequence[Sequence[str]]) -> str:
    names = [shown(" and ".join(step)) + (" (jointly)" if len(step) > 1 else "") for step in steps]
    return ", then ".join(names)


def _groups(found: Explanation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layers")
    table.add_column("", justify="right")
    table.add_column("of change", justify="right")
    uneven = [f.name for f in found.adapters if f.verdict == "there" and f.uneven]
    for name in uneven:
        table.add_column(shown(name), justify="right", overflow="fold")
    table.add_column("unexplained", justify="right")
    table.add_column("")
    for group in grouped(found):
        strengths = ["" if (s := group.strength(name)) is None else f"{s:.3f}" for name in uneven]
        share = (group.change / found.change) ** 2 if found.change else 0.0
        cells = (str(len(group.layers)), f"{share:.1%}", *strengths, f"{group.unexplained:.2%}")
        table.add_row(group.title, *cells, _shade(group.unexplained))
    return table


def _shade(share: float) -> str:
    """The darker the more, by tenfold: from 0.1 percent on."""
    steps = [share >= limit for limit in (0.001, 0.01, 0.1, 0.5)]
    return _SHADES[sum(steps)] * 3


def _show_layers(found: Explanation, all_layers: bool, console: Console) -> None:
    layers: Sequence[LayerFinding] = found.layers if all_layers else worst(found, _SHOWN_LAYERS)
    if not layers:
        return
    if not all_layers:
        console.print("[bold]where most is unexplained[/bold] (--layers for every layer)")
    there = [finding.name for finding in found.adapters if finding.verdict == "there"] if all_layers else []
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("change", justify="right")
    table.add_column("unexplained", justify="right")
    for name in there:
        table.add_column(shown(name), justify="right", overflow="fold")
    for layer in layers:
        strengths = [f"{layer.strengths[name]:.4f}" if name in layer.strengths else "" for name in there]
        table.add_row(shown(short_name(layer.name)), f"{layer.change:.3g}", f"{layer.share:.2%}", *strengths)
    console.print(table)


def _left(found: Explanation) -> str:
    if not found.unexplained:
        return "unexplained: nothing beyond rounding"
    left = sum(layer.unexplained > 0 for layer in found.layers)
    return (
        f"unexplained: {found.unexplained:.2%} of the change's norm, in {left} of {len(found.layers)} layers"
    )
