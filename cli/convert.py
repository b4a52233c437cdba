"""``paramerge convert``: an adapter in another file format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

from paramerge.cli.call import print_json
from paramerge.cli.options import (
    LazyChoice,
    alpha_option,
    dtype_option,
    json_option,
    overwrite_option,
    private_option,
    rehash_option,
)
from paramerge.cli.paths import FileText, InputPath, OutputPath
from paramerge.cli.render import Progress, gigabytes, note, note_ending, out, shown, warn
from paramerge.cli.verbs import Verb
from paramerge.interpretation import Interpretation

if TYPE_CHECKING:
    from paramerge.convert.convert import ConversionReport


def _formats() -> Iterable[str]:
    """The dialects that are written."""
    from paramerge.formats.registry import writable

    return (name for key, dialect in writable().items() for name in (key, *dialect.aliases))


@click.command(name="convert", cls=Verb)
@click.argument("adapters", nargs=-1, required=True, type=FileText(), metavar="IN ...")
@click.option(
    "--to",
    type=LazyChoice(_formats),
    required=True,
    help="lycoris is kohya: the same names, and all of LyCORIS's families; kohya-sgm has LDM's numbers.",
)
@click.option(
    "-o",
    "--output",
    type=OutputPath(),
    required=True,
    help="A file; a folder for peft and deft.",
)
@click.option(
    "--base",
    type=InputPath(),
    help="The checkpoint that a PaRa becomes a LoRA for; also the model whose keys settle names.",
)
@dtype_option(help="Default: as stored (a PaRa's LoRA: fp16).")
@click.option(
    "--partial",
    "--allow-unmatched",
    "partial",
    is_flag=True,
    help="Leave out layers that the format cannot hold and keys that are not understood; they are shown.",
)
@click.option(
    "--rank",
    type=int,
    metavar="R",
    help="Write layers of other families (LoHa, LoKr, full differences ...) as the nearest LoRA of at most "
    "this rank, and tell the error. DoRA, OFT and others that depend on the weight need --base.",
)
@private_option
@alpha_option
@overwrite_option
@rehash_option
@json_option
def convert(
    adapters: tuple[str, ...],
    to: str,
    output: Path,
    base: Path | None,
    dtype: str | None,
    partial: bool,
    rank: int | None,
    private: bool,
    alpha: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write an adapter in another format, with the same effect.

    A PaRa becomes a LoRA for one base; LoRAs named beside it (FILE@SCALE) come after it, in the same file.

    \b
    paramerge convert style.safetensors --to peft -o style/
    paramerge convert lokr.safetensors --to diffusers --rank 32 -o lora.safetensors
    paramerge convert subject-para.safetensors --to kohya --base sdxl.safetensors -o subject-lora.safetensors
    """
    from paramerge.convert.call import convert as run
    from paramerge.formats.registry import named_dialect

    with Progress("converting", quiet=as_json, unit="layers") as progress:
        report = run(
            adapters, output, to=to, base=base, dtype=dtype, partial=partial, private=private, rank=rank,
            interpretation=Interpretation(alpha=alpha), overwrite=overwrite, progress=progress.update,
        )  # fmt: skip
    if not named_dialect(to).folder:
        note_ending(output, report.outputs[0], quiet=as_json)
    if report.left_out:
        warn(f"left out: {len(report.left_out)}, such as {', '.join(report.left_out[:3])}")
    if as_json:
        print_json(_as_data(report))
    else:
        _show(report)


def _as_data(report: ConversionReport) -> dict[str, object]:
    return {
        "to": report.to,
        "outputs": [str(path) for path in report.outputs],
        "architecture": report.architecture,
        "rounding_error": report.rounding,
        "truncation_error": report.truncation,
        "notes": dict(report.notes),
        "left_out": list(report.left_out),
        "layers": [
            {
                "layer": str(layer.name),
                "family": layer.family,
                "rank": layer.rank,
                "rounding_error": layer.rounding,
                "truncation_error": layer.truncation,
            }
            for layer in report.layers
        ],
    }


def _show(report: ConversionReport) -> None:
    for text, count in report.notes.items():
        note(f"{text} ({count} layers)")
    exact = "the same changes" if report.notes else "the same numbers"
    if report.rounding:
        exact = f"rounded by up to {report.rounding:.1e}"
    if report.truncation:
        lost = [layer.truncation for layer in report.layers]
        exact = f"misses {median(lost):.1%} of a layer's change (median; at most {max(lost):.1%})"
    size = gigabytes(sum(path.stat().st_size for path in report.outputs))
    place = report.outputs[0] if len(report.outputs) == 1 else report.outputs[0].parent
    out.print(f"[bold]{shown(place)}[/bold]  {report.to}, {len(report.layers)} layers, {exact}, {size}")
