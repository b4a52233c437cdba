"""``paramerge sizes``: how large an adapter would be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paramerge.adapters.registry import sized
from paramerge.cli.call import print_json
from paramerge.cli.options import LazyChoice, dtype_option, gamma_option, json_option
from paramerge.cli.verbs import Verb
from paramerge.errors import UsageError
from paramerge.models.registry import published

if TYPE_CHECKING:
    from paramerge.sizes.sizes import BoundaryChoice, Size


@click.command(name="sizes", cls=Verb)
@click.option(
    "--arch",
    type=click.Choice(list(published())),
    default="sdxl",
    show_default=True,
    help="The architecture of the base.",
)
@click.option(
    "--subset",
    "subsets",
    multiple=True,
    metavar="NAME",
    default=("fmt",),
    show_default=True,
    help="A subset of the PaRa paper (exca, sao, cao, sca, fmt ...), several joined by +, or all.",
)
@click.option(
    "--rank", "ranks", type=int, multiple=True, metavar="R", default=(16,), show_default=True,
    help="May be repeated; OFT and BOFT take it as the size of their blocks.",
)  # fmt: skip
@click.option(
    "--family",
    "families",
    multiple=True,
    type=LazyChoice(sized),
    default=("para", "lora"),
    show_default=True,
    help="May be repeated.",
)
@gamma_option
@click.option(
    "--gamma-on",
    "boundary",
    type=click.Choice(["all", "conv"]),
    default="all",
    show_default=True,
    help="Hold all layers within --gamma, or convolutions alone, as Table 3 of the PaRa paper does.",
)
@click.option(
    "--kronecker",
    "--krona",
    metavar="A1,A2",
    default="64,4",
    show_default=True,
    help="The shape of DiffuseKronA's first factor; 64,4, 64,8 and 32,16 are its code's.",
)
@click.option(
    "--lokr-factor",
    type=int,
    metavar="N",
    default=-1,
    show_default=True,
    help="LoKr: the first factor's side is at most this, as in LyCORIS; -1: as near a square as it can be.",
)
@dtype_option(default="fp16")
@json_option
def sizes(
    arch: str,
    subsets: tuple[str, ...],
    ranks: tuple[int, ...],
    families: tuple[str, ...],
    gamma: float | None,
    boundary: BoundaryChoice,
    kronecker: str,
    lokr_factor: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Tell how large an adapter is, from the architecture alone.

    \b
    paramerge sizes --arch sdxl --subset exca --rank 16 --family para --family lora
    paramerge sizes --subset sao+cao --rank 4 --family lora --family krona --kronecker 64,4
    """
    from paramerge.sizes.call import sizes as run

    found = run(
        arch,
        families=families,
        subsets=subsets,
        ranks=ranks,
        gamma=gamma,
        boundary=boundary,
        kronecker=kronecker_pair(kronecker),
        lokr_factor=lokr_factor,
        dtype=dtype,
    )
    if as_json:
        options = {"gamma": gamma, "gamma_on": boundary, "krona": kronecker, "lokr_factor": lokr_factor}
        content = {
            "architecture": arch,
            "dtype": dtype,
            "options": options,
            "sizes": [size.as_dict() for size in found],
        }
        print_json(content)
    else:
        _show(found, arch, dtype)


def kronecker_pair(text: str) -> tuple[int, int]:
    """Read ``64,4``; raises UsageError for anything else."""
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            "this is not the shape of a factor", where="--kronecker", expected="two numbers: 64,4", found=text
        ) from None
    return first, second


def _show(found: list[Size], arch: str, dtype: str) -> None:
    from paramerge.cli.render import gigabytes, out, shown
    from paramerge.cli.tables import plain_table

    table = plain_table(
        "subset", ">rank", "family", ">layers", ">parameters", ">size", ">MiB (paper)", "note"
    )
    for size in found:
        table.add_row(
            shown(size.subset),
            str(size.rank),
            size.family,
            str(size.layers),
            f"{size.parameters:,}",
            gigabytes(size.nbytes),
            f"{size.nbytes / 2**20:.4g}",
            _note(size),
        )
    out.print(f"[bold]{arch}[/bold], UNet, {dtype}")
    out.print(table)


def _note(size: Size) -> str:
    notes = (
        (size.capped, "within the boundary"),
        (size.left_alone, "left alone by the boundary"),
        (size.not_possible, "cannot be factored so"),
    )
    return "; ".join(f"{count} {what}" for count, what in notes if count)
