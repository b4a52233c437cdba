"""Merges of checkpoints in a terminal: the methods, the plan, and what was done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from paramerge.apply.steps import Step
from paramerge.bake.output import check_output
from paramerge.bake.summary import summarise
from paramerge.cli.bake_view import show_plan, show_report
from paramerge.cli.flags import flagged
from paramerge.cli.render import Progress, note_ending, out, shown, warn
from paramerge.merge.call import plan_merge, refuse_options_of_adapters
from paramerge.merge.methods.method import Method
from paramerge.merge.methods.registry import REGISTRY
from paramerge.strict_json import dump


def show_methods() -> None:
    """The merge methods with their formulas and parameters."""
    for method in REGISTRY.all():
        out.print(f"[bold]{method.name}[/bold]  {_models(method)}")
        out.print(f"  {shown(method.summary.partition(': ')[2])}")
        for parameter in method.parameters:
            default = "" if parameter.default == () else f" [dim](default {parameter.default})[/dim]"
            out.print(f"  --{parameter.name.replace('_', '-')}: {shown(parameter.kind.says)}{default}")
        out.print(f"  [dim]{shown(method.source)}[/dim]")


def _models(method: Method) -> str:
    low, high = method.models
    return (
        f"{low} models"
        if low == high
        else f"{low} models or more"
        if high is None
        else f"{low} to {high} models"
    )


def merge_checkpoints(
    inputs: Sequence[str],
    output: Path,
    steps: Sequence[Step],
    *,
    base: Path | None,
    keep: str | None,
    rank: int | None,
    energy: float | None,
    overwrite: bool,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Plan the merge, show the plan or carry it out, and report."""
    refuse_options_of_adapters(base=base, keep=keep, rank=rank, energy=energy)
    plan = plan_merge(inputs, adapters=steps, **options)
    wanted = output
    output = check_output(plan, wanted, overwrite=overwrite)
    note_ending(wanted, output, quiet=as_json)
    summary = summarise(plan)
    if dry_run:
        if as_json:
            click.echo(dump(flagged({"plan": summary.as_dict(), "output": str(output)})))
        else:
            show_plan(summary, output)
        return
    for warning in () if as_json else (*plan.order_warnings, *plan.warnings):
        warn(warning)
    with Progress("merging", quiet=as_json, unit="bytes") as progress:
        report = plan.write(output, progress.update, overwrite=overwrite)
    if as_json:
        click.echo(dump(flagged({"plan": summary.as_dict(), "report": report.as_dict()})))
    else:
        show_report(plan, summary, report)
