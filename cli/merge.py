"""``paramerge merge``: adapters into one adapter, checkpoints into one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from paramerge.cli.call import print_json
from paramerge.cli.options import (
    OrderedSteps,
    card_option,
    content_hash_option,
    dtype_option,
    gamma_option,
    interpretation_options,
    json_option,
    overwrite_option,
    private_option,
    rehash_option,
    rounding_options,
    step_options,
    steps_of,
    unmatched_option,
)
from paramerge.cli.paths import FileText, InputPath, OutputPath
from paramerge.cli.render import Progress, note_ending, warn
from paramerge.interpretation import Interpretation, KronaOrder
from paramerge.merge.methods.parameters import Parameter, Weights
from paramerge.merge.methods.registry import REGISTRY
from paramerge.merge.request import KeepChoice

if TYPE_CHECKING:
    from typing import Literal

    from paramerge.merge.methods.method import Method
    from paramerge.merge.report import MergeReport


_COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "vae")
"""Components that may be taken from another file as they are."""

_OF_CHECKPOINTS = ("blocks", "only", "prune", "variant", "content_hash", "card")


def _component_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name in reversed(_COMPONENTS):
        command = click.option(
            f"--{name.replace('_', '-')}",
            f"from_{name}",
            type=InputPath(),
            metavar="FILE",
            help=f"Checkpoints: take the {name} of this file, a checkpoint or the {name} alone.",
        )(command)
    return command


def _show_methods(ctx: click.Context, _: click.Parameter, value: str | None) -> str | None:
    """With ``--method help`` list the methods and their parameters, and end."""
    if value != "help":
        return value
    from paramerge.cli.merge_view import show_methods

    show_methods()
    ctx.exit()


def _uses_of_parameters() -> dict[str, list[tuple[Method, Parameter]]]:
    of: dict[str, list[tuple[Method, Parameter]]] = {}
    for method in REGISTRY.all():
        for parameter in method.parameters:
            of.setdefault(parameter.name, []).append((method, parameter))
    return of


_PARAMETERS = _uses_of_parameters()
"""By name, each parameter that a merge method has, and the methods: what the command has options for."""


def _parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each parameter that a merge method has."""
    for name, uses in reversed(_PARAMETERS.items()):
        kind = uses[0][1].kind
        said = list(dict.fromkeys(f"{parameter.kind.says}" for _, parameter in uses))
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar="W1,W2" if isinstance(kind, Weights) else "|".join(getattr(kind, "words", ())) or "X",
            help=f"{'; or '.join(said)} ({', '.join(method.name for method, _ in uses)}).".capitalize(),
        )(command)
    return command


@click.command(name="merge", cls=OrderedSteps)
@click.argument("inputs", nargs=-1, required=True, type=FileText(), metavar="A[@SCALE] B[@SCALE] ...")
@click.option("-o", "--output", type=OutputPath(), required=True, help="What to write.")
@click.option(
    "--method",
    metavar="NAME",
    callback=_show_methods,
    is_eager=True,
    help="Checkpoints: how (weighted-sum); help lists the methods.",
)
@_parameter_options
@click.option(
    "--blocks", metavar="BLOCKS", help="Checkpoints: the last one's weight by block; a vector or GRAD_V, too."
)
@step_options
@_component_options
@click.option(
    "--only",
    multiple=True,
    metavar="WHAT",
    help="Checkpoints: a component (unet), or a pattern of layer names.",
)
@click.option("--prune", is_flag=True, help="Checkpoints: leave out EMA weights and a trainer's state.")
@click.option("--variant", metavar="NAME", help="Checkpoints: which weights of a folder, such as fp16.")
@click.option("--dry-run", is_flag=True, help="Checkpoints: print the plan from the headers alone and stop.")
@click.option(
    "--base",
    type=InputPath(),
    help="Adapters: the checkpoint, where the answer depends on it.",
)
@click.option(
    "--merge",
    "how",
    type=click.Choice(["joint", "sequential"]),
    default="joint",
    show_default=True,
    help="PaRas: onto the sum of their spans, or one after the other (into a checkpoint alone).",
)
@gamma_option
@click.option(
    "--keep",
    type=click.Choice(get_args(KeepChoice)),
    help="PaRas: which directions stay within --gamma or --rank (energy with --base, else consensus).",
)
@click.option("--rank", type=int, metavar="R", help="PaRas: cap the joint rank. LoRAs: truncate to it.")
@click.option("--energy", type=float, metavar="E", help="LoRAs: truncate to this share of the squared norm.")
@dtype_option(keep=True, help="Default: fp16 for adapters, each tensor's own for checkpoints.")
@rounding_options
@unmatched_option
@interpretation_options
@private_option
@content_hash_option
@card_option
@click.option("--layers", "all_layers", is_flag=True, help="Show every layer.")
@overwrite_option
@rehash_option
@json_option
@click.pass_context
def merge(
    ctx: click.Context,
    /,
    inputs: tuple[str, ...],
    output: Path,
    method: str | None,
    how: Literal["joint", "sequential"],
    all_layers: bool,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
    lokr_scale: float | None,
    krona: KronaOrder | None,
    released: str | None,
    alpha: str | None,
    **options: Any,
) -> None:
    """Merge adapters into one adapter, or checkpoints into one.

    PaRas are merged jointly: the result removes the sum of their spans, whatever their order, and merging A
    with A gives A. LoRAs are added exactly, each times its SCALE, and then truncated if you ask for it. With
    --base PaRas and LoRAs together become the one LoRA that does the same to that base, PaRa first.

    Checkpoints are merged by a method, whatever their layouts; the output has the first one's. --para and
    --lora are baked into the result with one rounding in all. A recipe.toml merges any number of them.

    \b
    paramerge merge cat.safetensors dog.safetensors -o pets.safetensors --gamma 1/40
    paramerge merge style.safetensors@0.8 detail.safetensors@-0.3 -o both.safetensors --rank 32
    paramerge merge one.safetensors two.safetensors --weights 0.7,0.3 --lora b.safetensors -o m.safetensors
    paramerge merge one.safetensors two.safetensors base.safetensors --method add-difference -o n.safetensors
    """
    from paramerge.merge.call import merge as run
    from paramerge.merge.given import Given, gives_checkpoint

    components = {name: path for name in _COMPONENTS if (path := options.pop(f"from_{name}")) is not None}
    steps = steps_of(ctx)
    parameters = {name: value for name in _PARAMETERS if (value := options.pop(name)) is not None}
    options["interpretation"] = Interpretation(lokr_scale, krona, alpha=alpha, released=released)
    ours = {name: value for name, value in options.items() if name in _OF_CHECKPOINTS and value}
    asked = bool(method or components or steps or parameters or ours or dry_run)
    if gives_checkpoint(Given(inputs), asked=asked):
        from paramerge.cli.merge_view import merge_checkpoints

        merge_checkpoints(
            inputs, output, steps, overwrite=overwrite, as_json=as_json, dry_run=dry_run,
            method=method, components=components, merge=how, **options, **parameters,
        )  # fmt: skip
        return
    with Progress("merging", quiet=as_json, unit="layers") as progress:
        done = run(inputs, output, merge=how, overwrite=overwrite, progress=progress.update, **options)
    report = cast("MergeReport", done)  # of adapters: checkpoints went another way
    note_ending(output, report.output, quiet=as_json)
    for warning in report.warnings:
        warn(warning)
    if as_json:
        print_json(as_data(report))
        return
    from paramerge.cli.merge_table import show_merge

    show_merge(report, all_layers=all_layers)


def as_data(report: MergeReport) -> dict[str, object]:
    """The report, for ``--json``."""
    lora = report.family == "lora"
    return {
        "output": str(report.output),
        "bytes": report.bytes,
        "family": report.family,
        "architecture": report.architecture,
        "inputs": [
            {
                "file": str(given.path),
                "family": given.family,
                "dialect": given.dialect,
                "scale": given.scale,
                "layers": given.layers,
                "sha256": list(given.sha256),
            }
            for given in report.inputs
        ],
        "options": {
            "gamma": report.options.gamma,
            "keep": report.options.keep,
            "rank": report.options.rank,
            "energy": report.options.energy,
            "dtype": report.options.dtype,
        },
        **({"truncation_error": report.error, "rounding_error": report.rounding} if lora else {}),
        "layers": [
            {
                "layer": str(layer.name),
                "ranks": list(layer.ranks),
                "sum_rank" if lora else "joint_rank": layer.full_rank,
                "limit": layer.limit,
                "rank": layer.rank,
                "dependent_columns": layer.dependent,
                "kept_energy": layer.kept_energy,
                **(
                    {"norm": layer.norm, "truncation_error": layer.error, "rounding_error": layer.rounding}
                    if lora
                    else {}
                ),
            }
            for layer in report.layers
        ],
        "left_out": [str(name) for name in report.left_out],
        "warnings": list(report.warnings),
    }
