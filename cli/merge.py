"""``paramerge merge``: adapters into one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from paramerge.cli.flags import flagged
from paramerge.cli.options import (
    dtype_option,
    gamma_option,
    json_option,
    overwrite_option,
    private_option,
    rehash_option,
    unmatched_option,
)
from paramerge.cli.render import Progress, note_ending, warn
from paramerge.merge.request import KeepChoice
from paramerge.strict_json import dump

if TYPE_CHECKING:
    from typing import Literal

    from paramerge.merge.report import MergeReport


@click.command(name="merge")
@click.argument("adapters", nargs=-1, required=True, metavar="A[@SCALE] B[@SCALE] ...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="The checkpoint, where the answer depends on it."
)
@click.option(
    "--merge",
    "how",
    type=click.Choice(["joint", "sequential"]),
    default="joint",
    show_default=True,
    help="PaRas: onto the sum of their spans. A sequence of them is not a PaRa, and is refused.",
)
@gamma_option
@click.option(
    "--keep",
    type=click.Choice(get_args(KeepChoice)),
    help="PaRas: which directions stay within --gamma or --rank (energy with --base, else consensus).",
)
@click.option("--rank", type=int, metavar="R", help="PaRas: cap the joint rank. LoRAs: truncate to it.")
@click.option("--energy", type=float, metavar="E", help="LoRAs: truncate to this share of the squared norm.")
@dtype_option(default="fp16")
@unmatched_option
@private_option
@click.option("--layers", "all_layers", is_flag=True, help="Show every layer.")
@overwrite_option
@rehash_option
@json_option
def merge(
    adapters: tuple[str, ...],
    output: Path,
    base: Path | None,
    how: Literal["joint", "sequential"],
    gamma: float | None,
    keep: KeepChoice | None,
    rank: int | None,
    energy: float | None,
    dtype: str,
    allow_unmatched: bool,
    private: bool,
    all_layers: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Merge adapters into one adapter.

    PaRas are merged jointly: the result removes the sum of their spans, whatever their order, and merging A
    with A gives A. LoRAs are added exactly, each times its SCALE, and then truncated if you ask for it. With
    --base PaRas and LoRAs together become the one LoRA that does the same to that base, PaRa first.

    \b
    paramerge merge cat.safetensors dog.safetensors -o pets.safetensors --gamma 1/40
    paramerge merge style.safetensors@0.8 detail.safetensors@-0.3 -o both.safetensors --rank 32
    """
    from paramerge.merge.call import merge as run

    with Progress("merging", quiet=as_json, unit="layers") as progress:
        report = run(
            adapters, output, base=base, merge=how, gamma=gamma, keep=keep, rank=rank, energy=energy,
            dtype=dtype, allow_unmatched=allow_unmatched, private=private, overwrite=overwrite,
            progress=progress.update,
        )  # fmt: skip
    note_ending(output, report.output, quiet=as_json)
    if as_json:
        click.echo(dump(flagged(as_data(report))))
        return
    from paramerge.cli.merge_table import show_merge

    for warning in report.warnings:
        warn(warning)
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
