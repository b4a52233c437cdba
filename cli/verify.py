"""``paramerge verify``: an output held against its recipe and its hashes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from paramerge.cli.call import print_json
from paramerge.cli.options import json_option, rehash_option
from paramerge.cli.paths import InputPath
from paramerge.cli.render import Progress, gigabytes, note, out, shown
from paramerge.cli.replay import models_option
from paramerge.cli.verbs import Verb

if TYPE_CHECKING:
    from paramerge.verify.verdict import TensorDifference, Verification

_SHOWN = 12


@click.command(name="verify", cls=Verb)
@click.argument("file", type=InputPath(), metavar="FILE")
@models_option
@click.option("--layers", "all_tensors", is_flag=True, help="List every tensor that differs.")
@rehash_option
@json_option
@click.pass_context
def verify(
    ctx: click.Context, file: Path, models: tuple[Path, ...], all_tensors: bool, as_json: bool
) -> None:
    """Tell whether a file is what its recipe makes, without writing.

    FILE is a file or folder that bake or merge wrote; nothing is written. Inputs are found as by replay.
    Without them the hashes in FILE tell whether it is as it was written.

    \b
    Exit codes:
    0   identical: made again, all of it the same
    10  differs: the tensors are listed, with how far they are off
    11  cannot tell: inputs are missing, there is no recipe, or only rounding of other versions differs
    12  damaged: not as it was written, by its own hashes

    \b
    paramerge verify baked.safetensors
    paramerge verify baked.safetensors --models . --json
    """
    from paramerge.verify.call import verify as run

    with Progress("verifying", quiet=as_json, unit="bytes") as progress:
        found = run(
            file, models=models, progress=progress.update, note=lambda text: note(text, quiet=as_json)
        )
    if as_json:
        print_json(found.as_dict())
    else:
        show(found, all_tensors=all_tensors)
    ctx.exit(found.exit_code)


def show(found: Verification, *, all_tensors: bool) -> None:
    """The verdict, its reasons, and the tensors that differ."""
    again = ""
    if found.is_made_again:
        rate = found.bytes / max(found.seconds, 1e-9) / 1e9
        speed = f"{gigabytes(found.bytes)} in {found.seconds:.1f} s, {rate:.2f} GB/s"
        again = f", {found.tensors} tensors made again ({speed})"
    out.print(f"[bold]{found.verdict}[/bold]  {shown(found.path)}{again}")
    for finding in found.findings:
        out.print(f"  {shown(finding)}")
    for missing in found.missing:
        out.print(f"  missing: {shown(missing)}")
    if found.differences:
        _show_differences(found.differences if all_tensors else found.differences[:_SHOWN])
    if len(found.differences) > _SHOWN and not all_tensors:
        out.print(f"and {len(found.differences) - _SHOWN} tensors more (all of them with --layers)")


def _show_differences(differences: Sequence[TensorDifference]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("tensor", overflow="fold")
    table.add_column("dtype")
    for title in ("elements", "relative error", "units"):
        table.add_column(title, justify="right")
    for found in differences:
        table.add_row(
            shown(found.key),
            found.dtype,
            f"{found.elements} of {found.of}",
            "-" if found.relative_error is None else f"{found.relative_error:.2e}",
            "-" if found.units is None else f"{found.units}{' (rounding)' if found.is_rounding else ''}",
        )
    out.print(table)
