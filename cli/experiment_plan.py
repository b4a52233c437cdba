"""The plan of an experiment in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from paramerge.cli.render import out, shown
from paramerge.cli.tables import plain_table
from paramerge.training.experiments.plan import Plan, whole_cost


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


def show_whole_cost(plans: Sequence[Plan], console: Console = out) -> None:
    """Show the cost of all together: an adapter that several need is trained once."""
    trainings, steps, pictures, seconds = whole_cost(plans)
    console.print(
        f"\n[bold]all {len(plans)} together[/bold]: {trainings} trainings, {steps:,} steps; "
        f"{pictures:,} pictures"
    )
    if seconds is not None:
        console.print(f"about {_time(seconds)} on one device, without the measuring")


def _trainings(plan: Plan) -> Table:
    """The trainings by rows: those that differ in their subject alone share one."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for training in plan.trainings:
        settings = [f"{key}={value}" for key, value in training.settings if value is not None]
        settings += [] if training.pictures is None else [f"pictures={training.pictures}"]
        stops = ", ".join(map(str, training.stops))
        key = (training.method, str(training.rank), stops, " ".join(settings))
        groups.setdefault(key, []).append(training.subject.name)
    every = [subject.name for subject in plan.data.first(plan.budget.subjects)]
    table = plain_table("method", "rank", "kept after steps", "settings", "subjects")
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
    table = plain_table("rows", "columns (subject: prompt)", "a run")
    for (rows, count, tuning), own in groups.items():
        note = " for tuning" if tuning else ""
        table.add_row(shown("\n".join(rows)), shown("\n".join(own)), f"{count}{note}")
    return table


def _time(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.1f} hours"
