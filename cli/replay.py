"""``paramerge replay``: a bake or a merge of checkpoints done again, as its recipe says, or changed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from paramerge.cli.options import (
    accept_loss_option,
    dtype_option,
    json_option,
    overwrite_option,
    rehash_option,
)
from paramerge.cli.paths import InputPath, OutputPath
from paramerge.cli.render import note
from paramerge.cli.verbs import Verb


class _Strength(click.ParamType):
    name = "step and strength"

    def convert(
        self, value: str | tuple[int, float], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, float]:
        """Read ``3=0.4``."""
        if isinstance(value, tuple):
            return value
        step, _, strength = value.partition("=")
        try:
            return int(step), float(strength)
        except ValueError:
            self.fail(f"{value!r} is not a step and its strength, such as 3=0.4", param, ctx)


models_option = click.option(
    "--models",
    multiple=True,
    type=InputPath(),
    metavar="FOLDER",
    help="Look for inputs here, too: by their hashes, whatever they are called. May be repeated.",
)


@click.command(name="replay", cls=Verb)
@click.argument("recipe", type=InputPath(), metavar="RECIPE")
@click.option("-o", "--output", type=OutputPath(), required=True, help="What to write.")
@models_option
@click.option(
    "--set",
    "strengths",
    type=_Strength(),
    multiple=True,
    metavar="N=STRENGTH",
    help="Another strength of the Nth adapter. May be repeated.",
)
@click.option(
    "--without", type=int, multiple=True, metavar="N", help="Leave the Nth adapter out. May be repeated."
)
@click.option("--base", type=InputPath(), help="Another base, or first model.")
@dtype_option(keep=True, help="Another dtype of the output.")
@accept_loss_option
@click.option("--dry-run", is_flag=True, help="Print the plan from the headers alone and stop.")
@overwrite_option
@rehash_option
@json_option
def replay(
    recipe: Path,
    output: Path,
    models: tuple[Path, ...],
    strengths: tuple[tuple[int, float], ...],
    without: tuple[int, ...],
    base: Path | None,
    dtype: str | None,
    accept_loss: bool,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Bake or merge again, as a recipe says, or a variant of it.

    RECIPE is a file or folder that bake or merge wrote, its recipe as JSON, or a TOML. Inputs are found by
    their SHA-256: in the folders of PARAMERGE_MODELS and of --models, in the Hugging Face cache, among what
    ships, and beside RECIPE. With the same versions and nothing changed the output has the same bytes. Steps
    are counted from 1, as paramerge inspect shows them.

    \b
    paramerge replay baked.safetensors -o again.safetensors
    paramerge replay baked.safetensors --set 1=0.4 --dtype bf16 -o variant.safetensors
    """
    from paramerge.bake.summary import summarise
    from paramerge.cli.bake_view import carry_out, checked_output, show_dry_run
    from paramerge.replay.call import plan_replay

    made = plan_replay(
        recipe, models=models, strengths=dict(strengths), without=without, base=base, dtype=dtype,
        accept_loss=accept_loss, note=lambda text: note(text, quiet=as_json),
    )  # fmt: skip
    plan = made.plan
    output = checked_output(output, partial(made.check_output, overwrite=overwrite), as_json=as_json)
    summary = summarise(plan)
    versions = {name: list(pair) for name, pair in made.versions.items()}
    if dry_run:
        show_dry_run(summary, output, as_json=as_json, versions=versions)
        return
    others = (f"{name} is not the one that the recipe was made with" for name in made.companions)
    warnings = (*map(_other, made.versions.items()), *others, *plan.order_warnings, *plan.warnings)
    carry_out(
        plan, summary, output, warnings, "baking", overwrite=overwrite, as_json=as_json, versions=versions
    )


def _other(version: tuple[str, tuple[str, str]]) -> str:
    name, (then, now) = version
    return f"{name} was {then} and is {now}: equal bytes are promised for equal versions alone"
