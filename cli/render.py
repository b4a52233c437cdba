"""How plans, findings and reports look in a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from paramerge.merge.plan import Plan
from paramerge.merge.summary import PlanSummary

if TYPE_CHECKING:  # these modules import torch
    from paramerge.merge.bake import BakeReport
    from paramerge.merge.diagnose import Diagnosis

__all__ = ["Progress", "gigabytes", "note", "show_diagnosis", "show_plan", "show_report", "warn"]

_SHOWN_LAYERS = 12
_REFRESH_SECONDS = 0.1

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)


def note(text: str, *, quiet: bool = False) -> None:
    """A line about what is going on, to stderr."""
    if not quiet:
        err.print(f"[dim]{escape(text)}[/dim]")


def warn(text: str) -> None:
    """A warning, to stderr."""
    err.print(f"[yellow]warning:[/yellow] {escape(text)}")


class Progress:
    """A progress bar on stderr; nothing at all where stderr is no terminal."""

    def __init__(self, title: str, *, quiet: bool, unit: str) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._title = title
        self._next = 0.0
        if not quiet and err.is_terminal:
            amount = (
                DownloadColumn() if unit == "bytes" else TextColumn("{task.completed}/{task.total} " + unit)
            )
            columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=err, transient=True)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show ``done`` of ``total``."""
        if self._bar is None or (time.monotonic() < self._next and done < total):
            return
        self._next = time.monotonic() + _REFRESH_SECONDS
        if self._task is None:
            self._task = self._bar.add_task(self._title, total=total)
        self._bar.update(self._task, completed=done, total=total)


def show_plan(plan: PlanSummary, output: Path) -> None:
    """The plan, as ``--dry-run`` prints it."""
    out.print(
        f"[bold]{escape(plan.base)}[/bold]: {plan.architecture}, {plan.layout}, {gigabytes(plan.bytes_in)}"
    )
    out.print(_steps_table(plan))
    out.print(_components_table(plan))
    for step in plan.steps:
        _show_leftovers(
            step.file, [*((name, "no such layer in the base") for name in step.unmatched), *step.leftovers]
        )
    if plan.companions:
        out.print(f"comes along untouched: {len(plan.companions)} files")
    for path, reason in plan.left_out:
        out.print(f"left out: {escape(path)} ({escape(reason)})")
    for warning in plan.warnings:
        out.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    boundary = "" if plan.options["gamma"] is None else f", gamma {plan.options['gamma']:g}"
    out.print(
        f"output: [bold]{escape(str(output))}[/bold], {gigabytes(plan.bytes_out)}, "
        f"dtype {plan.options['dtype']}, PaRas merged: {plan.options['merge']}{boundary}; "
        f"about {plan.peak_memory_bytes / 2**20:.0f} MiB of memory"
    )
    out.print("[dim]nothing was read but headers, nothing was written[/dim]")


def show_diagnosis(plan: Plan, diagnosis: Diagnosis) -> None:
    """What the order and the way of merging cost, before the work begins."""
    for loss in diagnosis.order:
        step = plan.steps[loss.lora]
        warn(
            f"{step.adapter.path.name} loses {loss.overall:.1%} of itself (||Q^T BA|| / ||BA||) to the PaRas "
            f"after it on the {len(loss.layers)} layers they share; put --para first to lose nothing"
        )
        _show_layers("share lost", loss.layers)
    if diagnosis.sequence is not None:
        found = diagnosis.sequence
        note(
            f"sequential differs from joint by at most {found.largest:.3g} (2-norm; mean over "
            f"{len(found.layers)} layers {found.mean:.3g}) and removes {found.sequential_rank} directions, "
            f"joint {found.joint_rank}"
        )
        _show_layers("distance from joint", found.layers)


def show_report(plan: Plan, summary: PlanSummary, report: BakeReport) -> None:
    """What was done, in a few lines."""
    removed = sum(layer.removed for layer in report.layers)
    for step in summary.steps:
        _show_leftovers(
            step.file, [*((name, "no such layer in the base") for name in step.unmatched), *step.leftovers]
        )
    steps = ", ".join(f"{step.kind} {escape(step.file)} @ {step.strength:g}" for step in summary.steps)
    directions = f", {removed} directions removed" if removed else ""
    out.print(f"baked {steps} into {len(report.layers)} layers of {escape(summary.base)}{directions}")
    for path, reason in plan.base.left_out:
        out.print(f"left out: {path} ({escape(reason)})")
    rate = report.output_bytes / max(report.seconds, 1e-9) / 1e9
    out.print(
        f"[bold]{escape(str(report.output))}[/bold]  {gigabytes(report.output_bytes)} "
        f"in {report.seconds:.1f} s ({rate:.2f} GB/s)"
    )


def gigabytes(count: int) -> str:
    """Bytes for people: ``6.94 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


def _steps_table(plan: PlanSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "adapter", "dialect", "strength", "layers", "ranks", "nowhere", "excluded"):
        table.add_column(name, justify="left" if name in ("step", "adapter", "dialect") else "right")
    for index, step in enumerate(plan.steps, 1):
        nowhere = len(step.unmatched) + len(step.leftovers)
        table.add_row(
            f"{index} {step.kind}",
            escape(step.file),
            step.dialect,
            f"{step.strength:g}",
            str(step.layers),
            _ranks(step.ranks),
            str(nowhere or "-"),
            str(step.layers_excluded or "-"),
        )
    return table


def _components_table(plan: PlanSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("component")
    for name in ("tensors", "edited", "converted", "bytes", "dtypes"):
        table.add_column(name, justify="right")
    for index in range(1, len(plan.steps) + 1):
        table.add_column(f"layers of step {index}", justify="right")
    table.add_column("largest rank", justify="right")
    for part in plan.components:
        dtypes = _counts(part.dtypes_out)
        table.add_row(
            part.component,
            str(part.tensors),
            str(part.edited or "-"),
            str(part.converted or "-"),
            gigabytes(part.bytes_out),
            dtypes,
            *(str(count or "-") for count in part.layers_by_step),
            str(part.largest_rank or "-"),
        )
    return table


def _show_leftovers(file: str, keys: Sequence[tuple[str, str]]) -> None:
    if not keys:
        return
    out.print(f"[yellow]{len(keys)} keys of {escape(file)} land nowhere:[/yellow]")
    for key, reason in keys[:_SHOWN_LAYERS]:
        out.print(f"  {escape(key)} [dim]({escape(reason)})[/dim]")
    if len(keys) > _SHOWN_LAYERS:
        out.print(f"  and {len(keys) - _SHOWN_LAYERS} more (all of them with --json)")


def _show_layers(title: str, layers: Mapping[str, float]) -> None:
    worst = sorted(layers.items(), key=lambda item: -item[1])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    table.add_column(title, justify="right")
    for name, value in worst[:_SHOWN_LAYERS]:
        table.add_row(escape(name), f"{value:.4f}")
    err.print(table)
    if len(worst) > _SHOWN_LAYERS:
        note(f"and {len(worst) - _SHOWN_LAYERS} layers below that (all of them with --json)")


def _ranks(ranks: Mapping[int, int]) -> str:
    if len(ranks) > 3:
        return f"{min(ranks)}-{max(ranks)}"
    return " ".join(f"{rank}x{count}" if len(ranks) > 1 else str(rank) for rank, count in ranks.items())


def _counts(dtypes: Mapping[str, int]) -> str:
    return " ".join(f"{name}x{count}" if len(dtypes) > 1 else name for name, count in dtypes.items())
