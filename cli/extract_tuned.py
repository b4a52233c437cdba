"""``paramerge extract --from``: how the extraction from two checkpoints is run and shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paramerge.cli.call import print_json
from paramerge.cli.render import Progress, gigabytes, note_ending, out, shown, warn
from paramerge.cli.tables import plain_table

if TYPE_CHECKING:
    from paramerge.extract.extract import ExtractionReport
    from paramerge.extract.families import Extracted, ExtractOptions


def extract_tuned(
    tuned: Path,
    base: Path,
    output: Path,
    options: ExtractOptions,
    *,
    overwrite: bool,
    all_layers: bool,
    as_json: bool,
) -> None:
    """Extract, and print the report."""
    from paramerge.apply.given import opened_base
    from paramerge.extract.extract import extract

    with Progress("extracting", quiet=as_json, unit="layers") as progress:
        report = extract(
            opened_base(tuned), opened_base(base), output, options, progress.update, overwrite=overwrite
        )
    note_ending(output, report.output, quiet=as_json)
    for name, reason in report.unlike.items():
        warn(f"{name} is left out: {reason}")
    if report.left_out:
        reasons = "; ".join(dict.fromkeys(report.left_out.values()))
        warn(f"{len(report.left_out)} changes are left out ({reasons})")
    if as_json:
        print_json(_as_data(report))
    else:
        _show(report, all_layers)


def _as_data(report: ExtractionReport) -> dict[str, object]:
    para = report.family == "para"
    return {
        "output": str(report.output),
        "bytes": report.output.stat().st_size,
        "family": report.family,
        "architecture": report.architecture,
        "error": report.error,
        "excess_bound": report.excess,
        "unchanged": report.unchanged,
        "left_out": report.left_out,
        "norms_and_biases": report.whole,
        "of_another_shape": report.unlike,
        "layers": [
            {
                "layer": str(layer.name),
                "rank": layer.rank,
                "norm": layer.norm,
                "error": layer.error,
                **(
                    {"exact": layer.exact, "rounding": layer.rounding, "strength": layer.strength}
                    if para
                    else {"excess_bound": layer.excess}
                ),
            }
            for layer in report.layers
        ],
    }


def _show(report: ExtractionReport, all_layers: bool) -> None:
    from paramerge.models.layer_kinds import layer_kind

    groups: dict[tuple[str, str], list[Extracted]] = {}
    for layer in report.layers:
        key = (str(layer.name), "") if all_layers else (layer.name.component, layer_kind(layer.name))
        groups.setdefault(key, []).append(layer)
    table = plain_table("layers", "", ">count", ">rank", ">error (most)")
    for (one, other), layers in groups.items():
        ranks = sorted({layer.rank for layer in layers})
        span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        worst = max(layer.error for layer in layers)
        table.add_row(one, other, str(len(layers)), span, f"{worst:.2e}")
    out.print(table)
    if report.family == "para":
        exact = sum(layer.exact for layer in report.layers)
        out.print(f"{exact} of {len(report.layers)} layers are PaRas to the rounding of the checkpoint")
    elif report.excess:
        out.print(f"randomised: the best of these ranks is nearer by at most {report.excess:.1e} in a layer")
    whole = f" and {report.whole} norms and biases" if report.whole else ""
    out.print(
        f"[bold]{shown(report.output)}[/bold]  {report.family}, {len(report.layers)} layers{whole}, "
        f"{report.unchanged} unchanged, error {report.error:.2e}, {gigabytes(report.output.stat().st_size)}"
    )
