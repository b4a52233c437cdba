"""``paramerge explain``: the adapters in a checkpoint, with strengths, order, and what is left over."""

from __future__ import annotations

from pathlib import Path

import click

from paramerge.cli.call import print_json
from paramerge.cli.options import interpretation_options, json_option, rehash_option
from paramerge.cli.paths import InputPath
from paramerge.cli.render import Progress, warn
from paramerge.cli.verbs import Verb
from paramerge.interpretation import Interpretation, KronaOrder


@click.command(name="explain", cls=Verb)
@click.argument("file", type=InputPath(), metavar="FILE")
@click.option("--base", type=InputPath(), required=True, help="The checkpoint it was made from.")
@click.option(
    "--adapters",
    multiple=True,
    type=InputPath(),
    metavar="FOLDER",
    help="A folder of adapters that may be in it, or one adapter. May be repeated.",
)
@click.option("--layers", "all_layers", is_flag=True, help="Show every layer that changed.")
@interpretation_options
@rehash_option
@json_option
def explain(
    file: Path,
    base: Path,
    adapters: tuple[Path, ...],
    all_layers: bool,
    lokr_scale: float | None,
    krona: KronaOrder | None,
    released: str | None,
    alpha: str | None,
    as_json: bool,
) -> None:
    """Explain a checkpoint: the adapters in it, and their strengths.

    Their order and what is left over, too.

    Every layer's change is fitted by the changes of all adapters at once. A bar holds the true strength in 95
    of 100 cases; it comes from the rounding of the file's numbers, or where something unknown is in the file
    from that. An adapter is said to be there where 0 is more than five standard errors away. Where the file
    has a recipe, its claims are compared.

    \b
    paramerge explain baked.safetensors --base sdxl.safetensors --adapters loras/
    """
    from paramerge.apply.given import opened_base
    from paramerge.cli.explain_table import show_explanation
    from paramerge.explain.candidates import open_candidates
    from paramerge.explain.explain import explain as run_explain
    from paramerge.explain.summary import as_dict
    from paramerge.resolve.weights import BaseWeights

    opened = opened_base(base)
    interpretation = Interpretation(lokr_scale, krona, alpha=alpha, released=released)
    candidates, left_out = open_candidates(adapters, BaseWeights(opened), interpretation)
    with Progress("explaining", quiet=as_json, unit="layers") as progress:
        found = run_explain(opened_base(file), opened, candidates, progress.update, left_out)
    for warning in found.warnings:
        warn(warning)
    if as_json:
        print_json(as_dict(found))
        return
    show_explanation(found, all_layers=all_layers)
