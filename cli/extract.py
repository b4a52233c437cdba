"""``paramerge extract``: an adapter out of two checkpoints, or a PaRa from a LoRA's strongest directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramerge.cli.call import print_json
from paramerge.cli.options import (
    LazyChoice,
    dtype_option,
    gamma_option,
    json_option,
    overwrite_option,
    rehash_option,
    unmatched_option,
)
from paramerge.cli.paths import InputPath, OutputPath
from paramerge.cli.render import gigabytes, note_ending, out, shown, warn
from paramerge.cli.tables import plain_table
from paramerge.cli.verbs import Verb
from paramerge.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from paramerge.adapters import Adapter
    from paramerge.extract.from_lora import Extraction, TakenLayer


def _families() -> Iterable[str]:
    from paramerge.extract.families import EXTRACTORS

    return EXTRACTORS


@click.command(cls=Verb)
@click.option("--from", "tuned", type=InputPath(), help="The checkpoint that was made from --base.")
@click.option("--base", type=InputPath(), help="The checkpoint that it was made from.")
@click.option(
    "--family",
    type=LazyChoice(_families),
    default="para",
    show_default=True,
    help="What to write: of a PaRa the basis is recovered, of the others the nearest is taken.",
)
@click.option(
    "--from-lora",
    "source",
    type=InputPath(),
    help="Instead: a PaRa from this LoRA (a file or PEFT folder).",
)
@click.option("-o", "--output", type=OutputPath(), required=True, help="The file to write.")
@click.option("--rank", type=int, metavar="R", help="So many directions from every layer.")
@click.option(
    "--energy",
    type=float,
    metavar="E",
    help="Or: the fewest that hold this share (0 to 1) of a layer's energy.",
)
@gamma_option
@click.option(
    "--kronecker", "--krona", metavar="A1,A2", default="64,4", show_default=True, help="Its first factor."
)
@click.option(
    "--lokr-factor",
    type=int,
    metavar="N",
    default=-1,
    show_default=True,
    help="LoKr: the first factor's side is at most this, as in LyCORIS; -1: as near a square as it can be.",
)
@click.option("--only", "only", multiple=True, metavar="COMPONENT", help="unet ... May be repeated.")
@click.option("--partial", is_flag=True, help="Leave out changes that the family cannot hold, and say which.")
@dtype_option(default="fp16")
@unmatched_option
@click.option("--private", is_flag=True, expose_value=False, help="Nothing changes: no names are written.")
@click.option("--layers", "all_layers", is_flag=True, help="List every layer.")
@overwrite_option
@rehash_option
@json_option
def extract(
    tuned: Path | None,
    base: Path | None,
    family: str,
    source: Path | None,
    output: Path,
    rank: int | None,
    energy: float | None,
    gamma: float | None,
    kronecker: str,
    lokr_factor: int,
    only: tuple[str, ...],
    partial: bool,
    dtype: str,
    allow_unmatched: bool,
    all_layers: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Extract an adapter from two checkpoints, or a PaRa from a LoRA.

    From two checkpoints: the PaRa that was applied (recovered to rounding, or refused if it was none), or the
    nearest LoRA, LoKr or DiffuseKronA. From a LoRA: a PaRa of the output directions that it writes to most,
    paramerge's own recipe (the PaRa paper trains its bases), a first PaRa to try things on.

    \b
    paramerge extract --from tuned.safetensors --base base.safetensors --family lora --rank 8 -o l.safetensors
    paramerge extract --from baked.safetensors --base sdxl.safetensors --family para -o p.safetensors
    paramerge extract --from-lora style.safetensors -o style-para.safetensors --rank 8
    """
    if (tuned is None) == (source is None) or (tuned is None) != (base is None):
        raise UsageError(
            "the source of the extraction is not given in one way",
            where="--from, --base, --from-lora",
            expected="--from with --base, or --from-lora alone",
        )
    if tuned is not None and base is not None:
        from paramerge.cli.extract_tuned import extract_tuned
        from paramerge.cli.sizes import kronecker_pair
        from paramerge.extract.families import ExtractOptions

        options = ExtractOptions(
            family, rank, energy, gamma, lokr_factor, kronecker_pair(kronecker), only, partial, dtype
        )
        extract_tuned(
            tuned, base, output, options, overwrite=overwrite, all_layers=all_layers, as_json=as_json
        )
    elif source is not None:
        if family != "para" or gamma is not None or only or partial:
            raise UsageError(
                "an option was given that does not apply to an extraction from a LoRA",
                where="--from-lora",
                expected="--rank or --energy",
            )
        _extract_from_lora(
            source, output, rank, energy, dtype, allow_unmatched, overwrite, all_layers, as_json
        )


def _extract_from_lora(
    source: Path,
    output: Path,
    rank: int | None,
    energy: float | None,
    dtype: str,
    allow_unmatched: bool,
    overwrite: bool,
    all_layers: bool,
    as_json: bool,
) -> None:
    from paramerge.adapters.unread import unread_warnings
    from paramerge.extract.from_lora import extract_para
    from paramerge.files.outputs import check_output_file, inputs_of
    from paramerge.files.source import check_unchanged
    from paramerge.formats import open_adapter, write_para

    adapter = open_adapter(source, family="lora")
    wanted = output
    output = check_output_file(wanted, inputs_of(adapter), overwrite=overwrite)
    note_ending(wanted, output, quiet=as_json)
    extraction = extract_para(adapter, rank=rank, energy=energy, allow_unmatched=allow_unmatched)
    origin = _origin(adapter, rank, energy)
    check_unchanged(adapter)
    write_para(
        output,
        {layer.name: layer.directions for layer in extraction.layers},
        architecture=adapter.architecture,
        base_sha256=[text for text in adapter.base_hashes if len(text) == 64],
        dtype=dtype,
        metadata=origin,
        overwrite=overwrite,
    )
    for warning in unread_warnings(adapter):
        warn(warning)
    if as_json:
        print_json(_as_data(adapter, extraction, output))
    else:
        _show(adapter, extraction, output, all_layers)


def _origin(adapter: Adapter, rank: int | None, energy: float | None) -> dict[str, str]:
    """Metadata that say how the file came about."""
    rule = f"rank={rank}" if rank is not None else f"energy={energy:g}"
    return {
        "extraction.method": "leading output directions of a LoRA",
        "extraction.rule": rule,
        "extraction.source_sha256": ",".join(source.sha256() for source in adapter.opened),
    }


def _as_data(adapter: Adapter, extraction: Extraction, output: Path) -> dict[str, object]:
    return {
        "output": str(output),
        "bytes": output.stat().st_size,
        "from": str(adapter.path),
        "dialect": adapter.dialect,
        "architecture": adapter.architecture,
        "captured_energy": extraction.captured,
        "layers": [
            {
                "layer": str(layer.name),
                "rank": layer.rank,
                "lora_rank": layer.lora_rank,
                "captured_energy": layer.captured,
                "norm": layer.norm,
            }
            for layer in extraction.layers
        ],
        "empty": [str(name) for name in extraction.empty],
        "leftovers": {key: leftover.reason for leftover in adapter.leftovers for key in leftover.keys},
    }


def _show(adapter: Adapter, extraction: Extraction, output: Path, all_layers: bool) -> None:
    out.print(_layer_table(extraction) if all_layers else _kind_table(extraction))
    if extraction.empty:
        out.print(
            f"[yellow]{len(extraction.empty)} layers of the LoRA are zero and give no direction[/yellow]"
        )
    out.print(
        f"[bold]{shown(output)}[/bold]  {len(extraction.layers)} layers, "
        f"rank {_span(extraction.layers)}, {extraction.captured:.1%} of the LoRA's energy, "
        f"{gigabytes(output.stat().st_size)}"
    )


def _kind_table(extraction: Extraction) -> Table:
    """One row for each kind of layer of each component."""
    from paramerge.extract.from_lora import held_share
    from paramerge.models.layer_kinds import layer_kind

    groups: dict[tuple[str, str], list[TakenLayer]] = {}
    for layer in extraction.layers:
        groups.setdefault((layer.name.component, layer_kind(layer.name)), []).append(layer)
    table = plain_table("component", "layers", ">count", ">rank", ">LoRA's rank", ">energy held (least)")
    for (component, kind), layers in groups.items():
        held = held_share(layers)
        least = min(layer.captured for layer in layers)
        ranks = _from_to([layer.lora_rank for layer in layers])
        table.add_row(component, kind, str(len(layers)), _span(layers), ranks, f"{held:.1%} ({least:.1%})")
    return table


def _layer_table(extraction: Extraction) -> Table:
    table = plain_table("layer", ">rank", ">LoRA's rank", ">energy held")
    for layer in extraction.layers:
        table.add_row(str(layer.name), str(layer.rank), str(layer.lora_rank), f"{layer.captured:.1%}")
    return table


def _span(layers: Sequence[TakenLayer]) -> str:
    return _from_to([layer.rank for layer in layers])


def _from_to(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"
