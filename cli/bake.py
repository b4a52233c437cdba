"""``paramerge bake``: adapters into a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import click

from paramerge.apply.steps import BakeOptions, MergeChoice, Rounding, Step
from paramerge.cli.bake_each import bake_each
from paramerge.cli.bake_view import carry_out, checked_output, show_diagnosis, show_dry_run
from paramerge.cli.options import (
    OrderedSteps,
    card_option,
    content_hash_option,
    dtype_option,
    gamma_option,
    interpretation_options,
    json_option,
    other_model_option,
    overwrite_option,
    private_option,
    rehash_option,
    rounding_options,
    rows_option,
    step_options,
    steps_of,
    unmatched_option,
)
from paramerge.cli.paths import FileText, InputPath, OutputPath
from paramerge.cli.render import Progress, note, warn
from paramerge.errors import UsageError
from paramerge.interpretation import Interpretation, KronaOrder
from paramerge.storage.written import QUANTISERS


@click.command(cls=OrderedSteps, rest_of="each")
@click.option(
    "--base",
    type=InputPath(),
    help="Checkpoint file or diffusers folder; emoji-diffusion is the one that ships.",
)
@step_options
@click.option("-o", "--output", type=OutputPath(), help="Default: made of the inputs' names.")
@click.option(
    "--each",
    multiple=True,
    type=FileText(),
    metavar="FILES[@SCALE]",
    help="Bake many: each of these adapters alone, after those above, into the folder --output. A pattern "
    "such as 'loras/*.safetensors', or a folder.",
)
@click.option(
    "--merge",
    type=click.Choice(get_args(MergeChoice)),
    default="joint",
    show_default=True,
    help="Several PaRas: onto the sum of their spans, or one after the other.",
)
@gamma_option
@interpretation_options
@rows_option
@click.option(
    "--only", multiple=True, metavar="WHAT", help="A component (unet), or a pattern of layer names."
)
@dtype_option(default="keep", keep=True)
@rounding_options
@click.option("--variant", metavar="NAME", help="Which weights of a diffusers folder, such as fp16.")
@click.option(
    "--requantise",
    is_flag=True,
    help="Write quantised layers that change in their own scheme again, not as bf16.",
)
@click.option(
    "--quantise", type=click.Choice(tuple(QUANTISERS)), help="Write Linear layers in blocks in this scheme."
)
@unmatched_option
@other_model_option
@private_option
@content_hash_option
@card_option
@click.option("--layers", "all_layers", is_flag=True, help="List all layers that a finding concerns.")
@click.option("--dry-run", is_flag=True, help="Print the plan from the headers alone and stop.")
@overwrite_option
@rehash_option
@json_option
@click.pass_context
def bake(
    ctx: click.Context,
    base: Path | None,
    output: Path | None,
    each: tuple[str, ...],
    merge: MergeChoice,
    gamma: float | None,
    lokr_scale: float | None,
    krona: KronaOrder | None,
    released: str | None,
    alpha: str | None,
    rows: str | None,
    only: tuple[str, ...],
    dtype: str,
    rounding: Rounding,
    lift: str | None,
    accept_loss: bool,
    variant: str | None,
    requantise: bool,
    quantise: str | None,
    allow_unmatched: bool,
    allow_other_model: bool,
    private: bool,
    content_hash: bool | None,
    card: bool,
    all_layers: bool,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Bake adapters of any family into a checkpoint.

    Steps are applied in the order given. The output has the base's layout and keeps every other byte; it
    appears whole or not at all. Without --base it is looked for by the hash in the adapters' metadata, in the
    folders of PARAMERGE_MODELS and in the Hugging Face cache.

    \b
    paramerge bake --base sdxl.safetensors --lora style.safetensors@0.8 -o mix.safetensors
    paramerge bake --base sdxl.safetensors --para a.safetensors --lora b.safetensors -o o.safetensors
    paramerge bake --base sdxl.safetensors --each 'loras/*.safetensors' -o baked/
    """
    options = BakeOptions(
        merge,
        gamma,
        only,
        dtype,
        allow_unmatched,
        private,
        content_hash,
        requantise=requantise,
        quantise=quantise,
        allow_other_model=allow_other_model,
        rounding=rounding,
        lift=lift,
        accept_loss=accept_loss,
        card=card,
    )
    job = _Job(
        base,
        variant,
        options,
        Interpretation(lokr_scale, krona, rows, alpha, released),
        all_layers,
        dry_run,
        overwrite,
        as_json,
    )
    steps = steps_of(ctx)
    if each:
        bake_each(each, steps, output, job.run, dry_run=dry_run, as_json=as_json)
    else:
        job.run(_at_least_one(steps), output)


@dataclass(frozen=True)
class _Job:
    """All that a bake is told but its adapters and its output."""

    base: Path | None
    variant: str | None
    options: BakeOptions
    interpretation: Interpretation
    all_layers: bool
    dry_run: bool
    overwrite: bool
    as_json: bool

    def run(self, steps: Sequence[Step], output: Path | None) -> None:
        """Bake ``steps``, or show the plan, and report."""
        from paramerge.apply.given import opened_base
        from paramerge.bake.find_base import find_base, named_hashes
        from paramerge.bake.output import check_output, default_output
        from paramerge.bake.plan import make_plan
        from paramerge.bake.summary import summarise
        from paramerge.formats import open_adapter

        as_json, base = self.as_json, self.base
        adapters = [open_adapter(step.path, step.kind, self.interpretation) for step in steps]
        looked_for = named_hashes(adapters) if base is None else []
        if base is None:
            base = find_base(adapters, note=lambda text: note(text, quiet=as_json))
            note(f"base: {base}", quiet=as_json)
        plan = make_plan(
            opened_base(base, self.variant), list(zip(steps, adapters, strict=True)), self.options
        )
        check = partial(check_output, plan, overwrite=self.overwrite)
        output = checked_output(output or default_output(plan), check, as_json=as_json)
        summary = summarise(plan)
        if self.dry_run:
            show_dry_run(summary, output, as_json=as_json)
            return
        for warning in plan.warnings:
            warn(warning)

        from paramerge.bake.diagnose import diagnose  # which imports torch

        with Progress("comparing adapters", quiet=as_json, unit="layers") as progress:
            diagnosis = diagnose(plan, progress.update)
        if not as_json:
            show_diagnosis(plan, diagnosis, all_layers=self.all_layers)
        carry_out(
            plan, summary, output, (), "baking", overwrite=self.overwrite, as_json=as_json,
            base_sha256=looked_for, diagnosis=diagnosis.as_dict(),
        )  # fmt: skip


def _at_least_one(steps: list[Step]) -> list[Step]:
    if not steps:
        raise UsageError(
            "there is nothing to bake",
            expected="at least one --lora FILE, --para FILE or --adapter FILE",
            hint="see paramerge bake --help",
        )
    return steps
