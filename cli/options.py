"""Options that several verbs share, and the parsing that click has no type for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, get_args

import click

from paramerge.apply.steps import LIFTS, Kind, Rounding, Step, parse_step
from paramerge.cli.call import note_inputs
from paramerge.cli.paths import FileText, spelled
from paramerge.cli.verbs import Verb
from paramerge.files.dtype_names import KEEP, WRITTEN, dtype_named, short_name
from paramerge.interpretation import KronaOrder

_STEP_KINDS: dict[str, Kind] = {"para": "para", "lora": "lora", "adapter": "adapter"}
_META_KEY = "paramerge.steps"


class OrderedSteps(Verb):
    """A command whose ``--para``, ``--lora`` and ``--adapter`` keep the order in which they were typed.

    click gathers the values of each option, which loses the order between options; its parser still knows it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse twice: once for the order of the steps, once as always."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        position = dict.fromkeys(_STEP_KINDS, 0)
        steps: list[tuple[Kind, str]] = []
        for parameter in order:
            kind = _STEP_KINDS.get(parameter.name or "")
            if kind is not None:
                steps.append((kind, values[kind][position[kind]]))
                position[kind] += 1
        ctx.meta[_META_KEY] = steps
        return super().parse_args(ctx, args)


def steps_of(ctx: click.Context) -> list[Step]:
    """The steps of the call, in the order typed."""
    steps = [parse_step(kind, spelled(text)) for kind, text in ctx.meta[_META_KEY]]
    note_inputs(str(step.path) for step in steps)
    return steps


def step_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--para``, ``--lora`` and ``--adapter``, any number of each."""
    adapter = click.option(
        "--adapter",
        multiple=True,
        type=FileText(),
        metavar="FILE[@SCALE[:BLOCKS]]",
        expose_value=False,
        help="An adapter of any family: PaRa, LoRA, LoHa, LoKr, DoRA, OFT ... May be repeated.",
    )
    lora = click.option(
        "--lora",
        multiple=True,
        type=FileText(),
        metavar="FILE[@SCALE[:BLOCKS]]",
        expose_value=False,
        help="A LoRA or LoCon (kohya, diffusers, PEFT, cloneofsimo). May be repeated. Blocks: "
        "IN04=0.5,OUT00=0, or a vector of 17, 26, 25, 12, 20 or 19 weights.",
    )
    para = click.option(
        "--para",
        multiple=True,
        type=FileText(),
        metavar="FILE[@STRENGTH[:BLOCKS]]",
        expose_value=False,
        help="A PaRa; strength 0 to 1. May be repeated. PaRa belongs before LoRA.",
    )
    return lora(para(adapter(command)))


alpha_option = click.option(
    "--alpha",
    metavar="rank|N",
    help="Alpha of PEFT files without adapter_config.json: the rank, so that the scale is 1, or a number.",
)


released_option = click.option(
    "--released",
    type=click.Choice(["yes", "no"]),
    help="Whether files of kohya's names are PaRas of the authors' released code, W - up down.",
)


def interpretation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--lokr-scale``, ``--krona``, ``--alpha`` and ``--released``: the user's word on what files mean."""
    scale = click.option(
        "--lokr-scale",
        type=float,
        metavar="SCALE",
        help="Of LoKr layers with two whole factors. Default: as their trainer has it (LyCORIS 1, PEFT "
        "alpha / r).",
    )
    krona = click.option(
        "--krona",
        type=click.Choice(get_args(KronaOrder)),
        help="Rows of a DiffuseKronA: as its published code computes (default), or the paper's A (x) B.",
    )
    return scale(krona(alpha_option(released_option(command))))


rows_option = click.option(
    "--rows",
    metavar="ORDER",
    help="Rows of q, k and v in one layer, of adapters for MiniMax H3: stacked (all of q, then k, then v) or "
    "interleaved (head by head). stacked:128 says the width of a head, too.",
)


class _Gamma(click.ParamType):
    name = "gamma"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read ``0.025`` or ``1/40``."""
        try:
            return float(Fraction(str(value)))
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is not a number such as 0.025 or 1/40", param, ctx)


gamma_option = click.option(
    "--gamma",
    type=_Gamma(),
    metavar="SHARE",
    help="Rank boundary: a PaRa removes at most this share of a layer's rank (the paper: 1/40).",
)


class LazyChoice(click.Choice[str]):
    """Choices that are asked for when they are needed: a package may add one, and importing takes time."""

    def __init__(self, found: Callable[[], Iterable[str]]) -> None:
        self.case_sensitive = True
        self._found = found

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """The choices of now."""
        return tuple(self._found())


class DtypeChoice(click.Choice[str]):
    """The dtypes that are written, in any of their spellings (``fp16``, ``F16``, ``float16``)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The short name of the dtype."""
        known = short_name(dtype_named(value))
        return super().convert(known if known in self.choices else value, param, ctx)


def dtype_option(
    *, default: str | None = None, keep: bool = False, help: str = "Of the numbers in the output."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--dtype``, of every verb that has one."""
    names = [*([KEEP] if keep else []), *map(short_name, WRITTEN)]
    return click.option(
        "--dtype", type=DtypeChoice(names), default=default, show_default=default is not None, help=help
    )


def rounding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--rounding``, ``--lift`` and ``--accept-loss``: what the output's dtype may lose."""
    rounding = click.option(
        "--rounding",
        type=click.Choice(get_args(Rounding)),
        default="nearest",
        show_default=True,
        help="Of changed values: to the nearest number, or stochastic, which keeps the mean of a change and "
        "has a larger error.",
    )
    lift = click.option(
        "--lift",
        type=DtypeChoice([short_name(name) for name in LIFTS]),
        help="Raise the layers to this dtype that would keep less than 0.9 of a step; they are measured "
        "first.",
    )
    return rounding(lift(accept_loss_option(command)))


accept_loss_option = click.option(
    "--accept-loss", is_flag=True, help="Write an output that keeps less than half of a step, too."
)

unmatched_option = click.option(
    "--allow-unmatched", is_flag=True, help="Go on without keys that are not understood; they are shown."
)


other_model_option = click.option(
    "--allow-other-model", is_flag=True, help="Take adapters for another architecture whose layers fit."
)


def _distrust(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """For the rest of the call, hash every file anew."""
    if wanted:
        from paramerge.files.hashing import distrust_cache

        ctx.with_resource(distrust_cache())


private_option = click.option(
    "--private",
    is_flag=True,
    help="Leave the inputs' names out of the output, and metadata that may hold some.",
)

content_hash_option = click.option(
    "--content-hash/--no-content-hash",
    default=None,
    help="Hash the output's tensors, so that verify finds damage without the inputs (default: up to 64 MiB).",
)

card_option = click.option(
    "--card",
    is_flag=True,
    help="Write a model card: README.md in a folder, beside a file one of its name (.md).",
)

rehash_option = click.option(
    "--rehash",
    is_flag=True,
    expose_value=False,
    callback=_distrust,
    help="Hash large files anew instead of believing hashes of earlier runs.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs, and nothing else."
)

overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the file, or the folder that paramerge wrote, at the output."
)
