"""``paramerge compare``: the effects of adapters on each other."""

from __future__ import annotations

from pathlib import Path

import click

from paramerge.cli.call import print_json
from paramerge.cli.options import interpretation_options, json_option, overwrite_option, unmatched_option
from paramerge.cli.paths import InputPath, OutputPath
from paramerge.cli.render import Progress, note, note_ending, warn
from paramerge.cli.verbs import Verb
from paramerge.interpretation import Interpretation, KronaOrder


@click.command(name="compare", cls=Verb)
@click.argument("adapters", nargs=-1, required=True, type=InputPath(), metavar="A B ...")
@click.option("--base", type=InputPath(), help="Compare also their effects on this checkpoint's weights.")
@click.option("--report", type=OutputPath(), metavar="OUT.html", help="Write a page on it, too.")
@click.option("--layers", "all_layers", is_flag=True, help="Show every layer.")
@unmatched_option
@interpretation_options
@overwrite_option
@json_option
def compare(
    adapters: tuple[Path, ...],
    base: Path | None,
    report: Path | None,
    all_layers: bool,
    allow_unmatched: bool,
    lokr_scale: float | None,
    krona: KronaOrder | None,
    released: str | None,
    alpha: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compare adapters: their overlap, and the cost of their order.

    \b
    PaRa x PaRa  principal angles, shared directions, joint rank, and the Friedrichs
                 cosine c, which is what merging one after the other gets wrong
    PaRa x LoRA  the share of the LoRA that is lost in each order
    LoRA x LoRA  whether they reinforce or cancel, and how far their outputs and
                 inputs overlap, beside what unrelated ones would by chance
    other families   norms and the cosine of their changes; those whose change
                 depends on the weight (DoRA, OFT ...) need --base

    \b
    paramerge compare cat.safetensors dog.safetensors --report pets.html
    """
    from paramerge.apply.given import opened_base
    from paramerge.compare.compare import compare as run_compare
    from paramerge.compare.summary import as_dict
    from paramerge.files.outputs import check_output_file, inputs_of
    from paramerge.formats import open_adapter

    interpretation = Interpretation(lokr_scale, krona, alpha=alpha, released=released)
    opened = [open_adapter(path, interpretation=interpretation) for path in adapters]
    checkpoint = None if base is None else opened_base(base)
    if report is not None:
        wanted, inputs = report, inputs_of(checkpoint, *opened)
        report = check_output_file(wanted, inputs, overwrite=overwrite, suffix=".html")
        note_ending(wanted, report, quiet=as_json)
    with Progress("comparing", quiet=as_json, unit="layers") as progress:
        comparison = run_compare(opened, checkpoint, progress.update, allow_unmatched=allow_unmatched)
    if report is not None:
        from paramerge.compare.report import write_report

        write_report(comparison, report, overwrite=overwrite)
    for warning in comparison.warnings:
        warn(warning)
    if as_json:
        print_json(as_dict(comparison))
        return
    from paramerge.cli.compare_table import show_comparison

    show_comparison(comparison, all_layers=all_layers)
    if report is not None:
        note(f"report: {report}")
