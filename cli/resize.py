"""``paramerge resize``: an adapter of a lower rank."""

from __future__ import annotations

from pathlib import Path

import click

from paramerge.cli.call import print_json
from paramerge.cli.merge import as_data
from paramerge.cli.options import (
    dtype_option,
    json_option,
    overwrite_option,
    private_option,
    rehash_option,
    unmatched_option,
)
from paramerge.cli.paths import InputPath, OutputPath
from paramerge.cli.render import Progress, note_ending, warn
from paramerge.cli.verbs import Verb


@click.command(name="resize", cls=Verb)
@click.argument("adapter", type=InputPath(), metavar="IN")
@click.option("-o", "--output", type=OutputPath(), required=True, help="The file to write.")
@click.option("--rank", type=int, metavar="R", help="At most this rank in every layer.")
@click.option(
    "--energy", type=float, metavar="E", help="Or: of each layer the least rank with this share (0 to 1)."
)
@click.option("--base", type=InputPath(), help="PaRa: the base that decides which directions matter.")
@dtype_option(default="fp16")
@unmatched_option
@private_option
@click.option("--layers", "all_layers", is_flag=True, help="Show every layer.")
@overwrite_option
@rehash_option
@json_option
def resize(
    adapter: Path,
    output: Path,
    rank: int | None,
    energy: float | None,
    base: Path | None,
    dtype: str,
    allow_unmatched: bool,
    private: bool,
    all_layers: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Lower the rank of a LoRA, LoCon or PaRa, keeping what does most.

    \b
    paramerge resize style.safetensors --energy 0.95 -o small.safetensors
    paramerge resize para.safetensors --rank 4 --base sdxl.safetensors -o small-para.safetensors
    """
    from paramerge.resize.call import resize as run

    with Progress("resizing", quiet=as_json, unit="layers") as progress:
        report = run(
            adapter, output, rank=rank, energy=energy, dtype=dtype, base=base,
            progress=progress.update, overwrite=overwrite, allow_unmatched=allow_unmatched, private=private,
        )  # fmt: skip
    note_ending(output, report.output, quiet=as_json)
    for warning in report.warnings:
        warn(warning)
    if as_json:
        print_json(as_data(report))
        return
    from paramerge.cli.merge_table import show_merge

    show_merge(report, all_layers=all_layers)
