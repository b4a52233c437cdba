"""Merges of checkpoints in a terminal: the methods, the plan, and what was done."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from paramerge.apply.steps import Step
from paramerge.bake.output import check_output
from paramerge.bake.summary import summarise
from paramerge.cli.bake_view import carry_out, checked_output, show_dry_run
from paramerge.cli.render import out, shown
from paramerge.merge.call import plan_merge, refuse_options_of_adapters
from paramerge.merge.methods.registry import REGISTRY


def show_methods() -> None:
    """The merge methods with their formulas and parameters."""
    for method in REGISTRY.all():
        out.print(f"[bold]{method.name}[/bold]  {method.models_taken} models")
        out.print(f"  {_plain(method.formula)}")
        for parameter in method.parameters:
            default = "" if parameter.default == () else f" [dim](default {parameter.default})[/dim]"
            out.print(f"  --{parameter.name.replace('_', '-')}: {_plain(parameter.kind.says)}{default}")
        out.print(f"  [dim]{shown(method.source)}[/dim]")


def _plain(text: str) -> str:
    return shown(text.replace("``", ""))


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
    output = checked_output(output, partial(check_output, plan, overwrite=overwrite), as_json=as_json)
    summary = summarise(plan)
    if dry_run:
        show_dry_run(summary, output, as_json=as_json)
        return
    warnings = (*plan.order_warnings, *plan.warnings)
    carry_out(plan, summary, output, warnings, "merging", overwrite=overwrite, as_json=as_json)
