"""A plan, its findings, its carrying out and the report, in a terminal of 80 columns or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from paramerge.bake.plan import Plan
from paramerge.bake.summary import ComponentSummary, PlanSummary, StepSummary
from paramerge.cli.call import print_json, remember_warning
from paramerge.cli.render import Progress, err, gigabytes, note, note_ending, out, shown, warn
from paramerge.cli.tables import plain_table

if TYPE_CHECKING:  # these modules import torch
    from paramerge.bake.bake import BakeReport
    from paramerge.bake.diagnose import Diagnosis
    from paramerge.bake.survival import Survival

_SHOWN_LAYERS = 12
_SAME = 1e-12
"""A distance between two merges below this is rounding in float64."""


def show_plan(plan: PlanSummary, output: Path) -> None:
    """The plan, as ``--dry-run`` prints it."""
    size = gigabytes(plan.bytes_in)
    out.print(f"[bold]{shown(plan.base)}[/bold]  {plan.architecture}, {plan.layout}, {size}")
    for line in _merged(plan):
        out.print(line)
    out.print()
    if plan.steps or plan.merged is None:
        out.print(_steps_table(plan.steps))
    for line in (*_what_depends(plan.steps), *_block_weights(plan.steps)):
        out.print(line)
    _show_what_is_not_applied(plan.steps)
    out.print()
    out.print(_components_table(plan.components))
    if plan.companions:
        out.print(f"{len(plan.companions)} more files come along untouched")
    _show_left_out(plan.left_out)
    out.print()
    for warning in plan.warnings:
        out.print(f"[yellow]warning:[/yellow] {shown(warning)}")
    if plan.layers_held_whole:
        out.print(f"{plan.layers_held_whole} layers are held in memory as a whole, one at a time, in float64")
    _show_lifted(plan)
    boundary = "" if plan.options["gamma"] is None else f", gamma {plan.options['gamma']:g}"
    rounding = "" if plan.options["rounding"] == "nearest" else f", {plan.options['rounding']} rounding"
    dtype = f"{plan.options['dtype']}{rounding}"
    out.print(f"options  dtype {dtype}, PaRas merged {plan.options['merge']}{boundary}")
    out.print(f"memory   about {gigabytes(plan.peak_memory_bytes)} at the peak")
    out.print(f"output   [bold]{shown(output)}[/bold], {gigabytes(plan.bytes_out)}")
    read = "only headers" if plan.options["lift"] is None else "headers, and the layers that may be lifted,"
    out.print(f"[dim]{read} were read, nothing was written[/dim]")


def show_dry_run(summary: PlanSummary, output: Path, *, as_json: bool, **more: object) -> None:
    """The plan alone: of ``--dry-run``; ``more`` is for JSON."""
    if as_json:
        for warning in summary.warnings:
            remember_warning(warning)
        print_json({"plan": summary.as_dict(), **more, "output": str(output)})
    else:
        show_plan(summary, output)


def checked_output(output: Path, check: Callable[[Path], Path], *, as_json: bool) -> Path:
    """The output as ``check`` names it, with a note where that is another name."""
    found = check(output)
    note_ending(output, found, quiet=as_json)
    return found


def carry_out(
    plan: Plan,
    summary: PlanSummary,
    output: Path,
    warnings: Iterable[str],
    word: str,
    *,
    overwrite: bool,
    as_json: bool,
    base_sha256: Collection[str] = (),
    **more: object,
) -> None:
    """Carry a plan out, with its warnings before and the report after; ``more`` is for JSON."""
    for warning in warnings:
        warn(warning)
    with Progress(word, quiet=as_json, unit="bytes") as progress:
        report = plan.write(output, progress.update, overwrite=overwrite, base_sha256=base_sha256)
    for warning in report.warnings:
        warn(warning)
    if as_json:
        print_json({"plan": summary.as_dict(), **more, "report": report.as_dict()})
    else:
        show_report(plan, summary, report)


def show_diagnosis(plan: Plan, diagnosis: Diagnosis, *, all_layers: bool) -> None:
    """Show the cost of the order and of the way of merging, before the work begins."""
    for loss in diagnosis.order:
        step = plan.steps[loss.lora]
        warn(
            f"{step.adapter.path.name} loses {loss.overall:.1%} of itself (||Q^T BA|| / ||BA||) to the PaRas "
            f"after it on the {len(loss.layers)} layers they share; put --para first to lose nothing"
        )
        _show_layers("lost", loss.layers, all_layers)
    if diagnosis.sequence is not None:
        found = diagnosis.sequence
        if found.largest < _SAME:
            note(f"on all {len(found.layers)} shared layers sequential and joint are the same")
            return
        note(
            f"sequential is off from joint by at most {found.largest:.3g} (2-norm; on average "
            f"{found.mean:.3g} over {len(found.layers)} shared layers); it removes {found.sequential_rank} "
            f"directions there, joint {found.joint_rank}"
            + ("; the distances are those before the rank boundary" if plan.options.gamma is not None else "")
        )
        _show_layers("distance", found.layers, all_layers)


def show_report(plan: Plan, summary: PlanSummary, report: BakeReport) -> None:
    """Show the outcome of a bake, in a few lines."""
    removed = sum(layer.removed for layer in report.layers)
    for line in _merged(summary):
        out.print(line)
    for index, step in enumerate(summary.steps, 1):
        out.print(f"{index}  {_kind(step)} {shown(step.file)} @ {step.strength:g} into {_layers(step)}")
    for line in _block_weights(summary.steps):
        out.print(line)
    _show_what_is_not_applied(summary.steps)
    _show_left_out(summary.left_out)
    directions = f", {removed} directions removed" if removed else ""
    if summary.steps or summary.merged is None:
        out.print(f"{len(report.layers)} layers of {shown(summary.base)} changed{directions}")
    _show_lifted(summary)
    _show_survival(report.survival)
    rate = report.output_bytes / max(report.seconds, 1e-9) / 1e9
    out.print(
        f"[bold]{shown(report.output)}[/bold]  {gigabytes(report.output_bytes)} "
        f"in {report.seconds:.1f} s ({rate:.2f} GB/s)"
    )


def _show_lifted(plan: PlanSummary) -> None:
    """The layers that are raised to a finer dtype, and the least that they would have kept."""
    if plan.lifted:
        worst = sorted(plan.lifted, key=lambda layer: layer.survival)
        named = ", ".join(f"{shown(layer.name)} {layer.survival:.3f}" for layer in worst[:3])
        more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
        out.print(f"{len(worst)} layers raised to {worst[0].after}, which would have kept: {named}{more}")


def _show_survival(survival: Survival) -> None:
    """The part of each step's change that was written, in a line."""
    parts = [
        f"{number}: {step.survival:.3f}" + (f" ± {step.deviation:.3f}" if step.deviation >= 0.0005 else "")
        for number, step in enumerate(survival.steps, 1)
        if step.survival is not None
    ]
    if parts:
        out.print(f"kept of each step's change: {', '.join(parts)}; error {survival.error:.2g} of the change")


def _merged(plan: PlanSummary) -> Iterator[str]:
    """The models and what is made of them, a line each."""
    if plan.merged is None:
        return
    for number, name in enumerate(plan.merged.models, 1):
        yield f"model {number}  {shown(name)}"
    for number, step in enumerate(plan.merged.steps, 1):
        said = (f"{name} {_value(value)}" for name, value in step.items() if name not in ("method", "inputs"))
        yield f"step {number}   {step['method']} of {_value(step['inputs'])}; {shown(', '.join(said))}"
    for component, model in plan.merged.components.items():
        yield f"{component} of {model}"
    yield ", ".join(f"{count} tensors {what}" for what, count in plan.merged.tensors.items() if count)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_value(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _steps_table(steps: Sequence[StepSummary]) -> Table:
    table = plain_table("", "step", "adapter", ">strength", "dialect", "layers", "rank")
    for index, step in enumerate(steps, 1):
        cells = (str(index), _kind(step), shown(step.file), f"{step.strength:g}", step.dialect)
        table.add_row(*cells, _layers(step), _ranks(step.ranks))
    return table


def _kind(step: StepSummary) -> str:
    """The kind of an adapter as given: ``para``, ``lora``, or its families."""
    return ", ".join(step.families) if step.kind == "adapter" else step.kind


def _what_depends(steps: Sequence[StepSummary]) -> Iterator[str]:
    """The steps whose change depends on the weight that the others left."""
    for index, step in enumerate(steps, 1):
        if step.depends_on_weight:
            before = "the base" if index == 1 else f"step {index - 1}"
            yield (
                f"step {index} depends on the weight: it acts on {step.depends_on_weight} layers "
                f"as {before} left them"
            )


def _block_weights(steps: Sequence[StepSummary]) -> Iterator[str]:
    """The weight of every block that a step with block weights changes, and its layers there."""
    for index, step in enumerate(steps, 1):
        if step.blocks:
            uses = ", ".join(f"{use.block} {use.weight:g} ({use.layers})" for use in step.blocks)
            yield f"step {index} by block (layers): {uses}"


def _layers(step: StepSummary) -> str:
    return (
        ", ".join(f"{component} {count}" for component, count in step.layers_by_component.items()) or "none"
    )


def _components_table(components: Sequence[ComponentSummary]) -> Table:
    table = plain_table("component", ">tensors", ">edited", ">largest rank", "dtype", ">bytes")
    for part in components:
        table.add_row(
            part.component,
            str(part.tensors),
            str(part.edited or "-"),
            str(part.largest_rank or "-"),
            _dtypes(part),
            gigabytes(part.bytes_out),
        )
    return table


def _show_what_is_not_applied(steps: Sequence[StepSummary]) -> None:
    """Keys that land nowhere and layers that were excluded, counted and shown."""
    for step in steps:
        keys = [*((name, "no such layer in the base") for name in step.unmatched), *step.leftovers]
        if step.layers_excluded:
            out.print(f"{step.layers_excluded} layers of {shown(step.file)} are excluded by --only")
        if keys:
            named = (
                f"key of {shown(step.file)} lands" if len(keys) == 1 else f"keys of {shown(step.file)} land"
            )
            out.print(f"[yellow]{len(keys)} {named} nowhere:[/yellow]")
        for key, reason in keys[:_SHOWN_LAYERS]:
            out.print(f"  {shown(key)} [dim]({shown(reason)})[/dim]")
        if len(keys) > _SHOWN_LAYERS:
            out.print(f"  and {len(keys) - _SHOWN_LAYERS} more (all of them with --json)")


def _show_left_out(files: Iterable[tuple[str, str]]) -> None:
    for path, reason in files:
        out.print(f"left out: {shown(path)} ({shown(reason)})")


def _show_layers(title: str, layers: Mapping[str, float], all_layers: bool) -> None:
    worst = sorted(layers.items(), key=lambda item: -item[1])
    listed = worst if all_layers else worst[:_SHOWN_LAYERS]
    table = plain_table("layer", f">{title}")
    for name, value in listed:
        table.add_row(shown(name), f"{value:.4f}")
    err.print(table)
    if len(listed) < len(worst):
        note(f"and {len(worst) - len(listed)} layers below that (all of them with --layers)")


def _ranks(ranks: Mapping[int, int]) -> str:
    if len(ranks) > 3:
        return f"{min(ranks)} to {max(ranks)}"
    return ", ".join(f"{rank} ({count})" if len(ranks) > 1 else str(rank) for rank, count in ranks.items())


def _dtypes(part: ComponentSummary) -> str:
    """``F16``, ``F16, 1 I64``, ``F32 > F16``: the commonest first, the conversion if there is one."""
    before, after = _counts(part.dtypes_in), _counts(part.dtypes_out)
    return after if before == after else f"{before} > {after}"


def _counts(dtypes: Mapping[str, int]) -> str:
    (first, _), *others = sorted(dtypes.items(), key=lambda item: -item[1])
    return ", ".join([first, *(f"{count} {name}" for name, count in others)])
