"""``paramerge extract``: a PaRa from the directions that a LoRA writes to most."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramerge.cli.options import json_option
from paramerge.errors import OutputError

if TYPE_CHECKING:
    from rich.table import Table

    from paramerge.adapters import Adapter
    from paramerge.adapters.extraction import ExtractedLayer, Extraction

__all__ = ["extract"]

_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}


@click.command()
@click.option(
    "--from-lora",
    "source",
    type=click.Path(path_type=Path),
    required=True,
    help="The LoRA: a file or PEFT folder.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The PaRa file to write."
)
@click.option("--rank", type=int, metavar="R", help="So many directions from every layer.")
@click.option(
    "--energy",
    type=float,
    metavar="E",
    help="Or: the fewest that hold this share (0 to 1) of a layer's energy.",
)
@click.option("--dtype", type=click.Choice(list(_DTYPES)), default="fp16", show_default=True)
@click.option("--layers", "all_layers", is_flag=True, help="List every layer.")
@json_option
def extract(
    source: Path,
    output: Path,
    rank: int | None,
    energy: float | None,
    dtype: str,
    all_layers: bool,
    as_json: bool,
) -> None:
    """Make a PaRa from a LoRA: the output directions that each layer of it writes to most.

    They are the leading left singular vectors of the LoRA's change to a layer. This recipe is paramerge's own
    (the PaRa paper trains its bases): a first PaRa to try things on, not the equal of a trained one.

    \b
    paramerge extract --from-lora style.safetensors -o style-para.safetensors --rank 8
    """
    from paramerge.adapters.extraction import extract_para
    from paramerge.formats import open_adapter, write_para

    adapter = open_adapter(source, family="lora")
    _check_output(adapter, output)
    extraction = extract_para(adapter, rank=rank, energy=energy)
    write_para(
        output,
        {layer.name: layer.directions for layer in extraction.layers},
        architecture=adapter.architecture,
        base_sha256=[text for text in adapter.base_hashes if len(text) == 64],
        dtype=_DTYPES[dtype],
        metadata=_origin(adapter, rank, energy),
    )
    if as_json:
        click.echo(json.dumps(_as_data(adapter, extraction, output), indent=2))
    else:
        _show(adapter, extraction, output, all_layers)


def _check_output(adapter: Adapter, output: Path) -> None:
    if output.suffix != ".safetensors":
        raise OutputError(
            "a PaRa is a safetensors file", where=output, expected="a name that ends in .safetensors"
        )
    for source in adapter.sources:
        if output.exists() and output.samefile(source):
            raise OutputError(
                "the output is the input",
                where=output,
                found=f"the same file as {source}",
                hint="give another -o: inputs are never overwritten",
            )


def _origin(adapter: Adapter, rank: int | None, energy: float | None) -> dict[str, str]:
    """Metadata that say how the file came about."""
    from paramerge.checkpoints.hashing import file_sha256

    rule = f"rank={rank}" if rank is not None else f"energy={energy:g}"
    return {
        "extraction.method": "leading output directions of a LoRA",
        "extraction.rule": rule,
        "extraction.source_sha256": ",".join(file_sha256(source) for source in adapter.sources),
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
    from rich.console import Console

    from paramerge.cli.render import shown

    console = Console(highlight=False)
    console.print(_layer_table(extraction) if all_layers else _kind_table(extraction))
    if extraction.empty:
        console.print(
            f"[yellow]{len(extraction.empty)} layers of the LoRA are zero and give no direction[/yellow]"
        )
    for leftover in adapter.leftovers:
        console.print(f"[yellow]left out:[/yellow] {len(leftover.keys)} keys ({shown(leftover.reason)})")
    console.print(
        f"[bold]{shown(output)}[/bold]  {len(extraction.layers)} layers, "
        f"rank {_span(extraction.layers)}, {extraction.captured:.1%} of the LoRA's energy, "
        f"{output.stat().st_size / 1e6:.2f} MB"
    )


def _kind_table(extraction: Extraction) -> Table:
    """One row for each kind of layer of each component."""
    from paramerge.formats.layers import layer_kind

    groups: dict[tuple[str, str], list[ExtractedLayer]] = {}
    for layer in extraction.layers:
        groups.setdefault((layer.name.component, layer_kind(layer.name)), []).append(layer)
    table = _table("component", "layers", "count", "rank", "LoRA's rank", "energy held (least)")
    for (component, kind), layers in groups.items():
        total = math.fsum(layer.norm**2 for layer in layers)
        held = math.fsum(layer.captured * layer.norm**2 for layer in layers) / total
        least = min(layer.captured for layer in layers)
        ranks = _from_to([layer.lora_rank for layer in layers])
        table.add_row(component, kind, str(len(layers)), _span(layers), ranks, f"{held:.1%} ({least:.1%})")
    return table


def _layer_table(extraction: Extraction) -> Table:
    table = _table("layer", "rank", "LoRA's rank", "energy held")
    for layer in extraction.layers:
        table.add_row(str(layer.name), str(layer.rank), str(layer.lora_rank), f"{layer.captured:.1%}")
    return table


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        words = title in ("component", "layer", "layers")
        table.add_column(title, justify="left" if words else "right", overflow="fold")
    return table


def _span(layers: Sequence[ExtractedLayer]) -> str:
    return _from_to([layer.rank for layer in layers])


def _from_to(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"
