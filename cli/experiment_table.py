"""How a plan and the outcome of an experiment look in a terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from paramerge.cli.render import out, shown
from paramerge.training.experiments import Outcome, Plan
from paramerge.training.experiments.figures import row_values

__all__ = ["show_outcome", "show_plan"]

_COLOURS = {"holds": "green", "does not hold": "red", "cannot be told": "yellow"}
_FACTS = ("parameters", "bytes", "seconds")


def show_plan(plan: Plan, clip: str, lpips: str, console: Console = out) -> None:
    """Everything that would be done and its cost; ``--json`` has each cell by itself."""
    budget, cost = plan.budget, plan.cost()
    console.print(f"[bold]{plan.experiment.name}[/bold]: {plan.experiment.title} ({plan.experiment.source})")
    console.print(f"model {shown(plan.model)}, data {shown(plan.data.folder)}, prompts of {plan.data.origin}")
    console.print(f"\n[bold]{cost.trainings} trainings[/bold], {cost.training_steps:,} steps")
    console.print(_trainings(plan))
    sampling = budget.sampling
    console.print(
        f"\n[bold]{cost.pictures:,} pictures[/bold] of {cost.variants} variants of the model, "
        f"{budget.runs} runs of each prompt; {sampling.steps} steps of {sampling.scheduler}, "
        f"guidance {sampling.guidance:g}: {cost.unet_calls:,} pictures through the UNet"
    )
    console.print(_pictures(plan))
    console.print(
        f"\n[bold]measured[/bold]: {cost.ssim_pairs:,} pairs by SSIM; {cost.clip_pictures:,} pictures by "
        f"{shown(clip)}; {cost.lpips_pairs:,} pairs by {shown(lpips)}"
    )
    console.print("\n[bold]claims that will be judged[/bold]")
    for claim in plan.experiment.claims(budget):
        console.print(f"  {shown(claim.where)}: {shown(claim.text)}")
    console.print()
    for note in budget.notes:
        console.print(f"[dim]{shown(note)}[/dim]")
    if cost.seconds is not None and budget.seconds is not None:
        console.print(
            f"about {_time(cost.seconds)} on one device, without the measuring; {shown(budget.seconds[2])}"
        )


def _trainings(plan: Plan) -> Table:
    """Those that differ in their subject alone share a row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for training in plan.trainings:
        settings = [f"{key}={value}" for key, value in training.settings if value is not None]
        settings += [] if training.pictures is None else [f"pictures={training.pictures}"]
        stops = ", ".join(map(str, training.stops))
        key = (training.method, str(training.rank), stops, " ".join(settings))
        groups.setdefault(key, []).append(training.subject.name)
    every = [subject.name for subject in plan.data.first(plan.budget.subjects)]
    table = _table("method", "rank", "kept after steps", "settings", "subjects")
    for cells, subjects in groups.items():
        own = f"all {len(every)}" if subjects == every else ", ".join(subjects)
        table.add_row(*map(shown, cells), shown(own))
    table.caption = shown(f"all {len(every)}: {', '.join(every)}")
    table.caption_justify = "left"
    return table


def _pictures(plan: Plan) -> Table:
    """Rows that are drawn for the same columns share a line, and so do columns of the same rows."""
    columns: dict[tuple[str, int, bool], list[str]] = {}
    for cell in plan.cells:
        columns.setdefault((cell.column, cell.count, cell.tuning), []).append(cell.row)
    groups: dict[tuple[tuple[str, ...], int, bool], list[str]] = {}
    for (column, count, tuning), drawn in columns.items():
        groups.setdefault((tuple(dict.fromkeys(drawn)), count, tuning), []).append(column)
    table = _table("rows", "columns (subject: prompt)", "a run")
    for (rows, count, tuning), own in groups.items():
        note = " for tuning" if tuning else ""
        table.add_row(shown("\n".join(rows)), shown("\n".join(own)), f"{count}{note}")
    return table


def show_outcome(outcome: Outcome, console: Console = out) -> None:
    """A row's means over columns with their 95% intervals, and a verdict for each claim."""
    lines = [line for line in outcome.lines if not line.tuning]
    metrics = list(dict.fromkeys(key for line in lines for key in line.metrics))
    table = _table("", *metrics)
    for row in dict.fromkeys(line.row for line in lines):
        table.add_row(shown(row), *(_value(row_values(lines, row, m), m) for m in metrics))
    console.print(table)
    for metric, model in outcome.models.items():
        console.print(f"[dim]{metric}: by {shown(model)}[/dim]")
    console.print("[dim]±: 95% interval over subjects and prompts[/dim]\n")
    for verdict in outcome.verdicts:
        colour = _COLOURS[verdict.verdict]
        console.print(
            f"[{colour}]{verdict.verdict}[/{colour}]  {shown(verdict.claim.text)} ({verdict.claim.where})"
        )
        console.print(f"    [dim]{shown(verdict.reason)}[/dim]")
    console.print(
        f"[bold]{shown(outcome.folder)}[/bold]  results.jsonl, summary.json, figure.png, examples.png"
    )


def _value(found: tuple[float, float] | None, metric: str) -> str:
    if found is None:
        return ""
    mean, width = found
    if metric in _FACTS:
        return f"{mean:,.0f}"
    return f"{mean:.4f}" if math.isinf(width) else f"{mean:.4f} ± {width:.4f}"


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _time(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.1f} hours"
