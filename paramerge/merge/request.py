"""The request of a merge of adapters: inputs with their scales, and the options of the whole merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from paramerge.apply.amounts import check_amounts
from paramerge.apply.steps import Step, parse_step
from paramerge.apply.strengths import check_strength
from paramerge.errors import FamilyError, UsageError
from paramerge.files.dtype_names import parse_dtype
from paramerge.wording import call, option

if TYPE_CHECKING:  # reading options must not import NumPy
    from paramerge.adapters import Adapter

KeepChoice = Literal["energy", "consensus", "order"]


@dataclass(frozen=True, slots=True)
class Input:
    """One adapter to merge. ``scale`` multiplies a LoRA; a PaRa's is 1."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.scale, self.path, "scale")


@dataclass(frozen=True, slots=True)
class CombineOptions:
    """The options of ``paramerge merge``.

    Attributes
    ----------
    merge:
        ``joint``; ``sequential`` is refused for PaRas.
    gamma:
        PaRa: the rank boundary of the paper's equation 8, in (0, 1], or None.
    keep:
        PaRa: which directions stay within the boundary, ``energy`` (of the base), ``consensus`` or ``order``;
        None for energy where there is a base, else consensus.
    rank:
        PaRa: a cap on the joint rank. LoRA: the rank to truncate to.
    energy:
        LoRA: the share of each layer's squared norm to hold, in (0, 1].
    dtype:
        ``F16``, ``BF16`` or ``F32``.
    allow_unmatched:
        Leave out keys that are not understood, instead of refusing.
    private:
        Leave the inputs' names out of the output, and their metadata except those on the kind of model.
    """

    merge: Literal["joint", "sequential"] = "joint"
    gamma: float | None = None
    keep: KeepChoice | None = None
    rank: int | None = None
    energy: float | None = None
    dtype: str = "F16"
    allow_unmatched: bool = False
    private: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", parse_dtype(self.dtype))
        check_amounts(self.rank, self.energy, self.gamma)
        if self.keep is not None and self.keep not in get_args(KeepChoice):
            raise UsageError(
                "no such choice",
                where=option("keep"),
                expected=", ".join(get_args(KeepChoice)),
                found=self.keep,
            )


def parse_input(text: str) -> Input:
    """Read ``FILE`` or ``FILE@SCALE``; a file whose own name holds the ``@`` is taken as it is."""
    return input_of(parse_step("lora", text))


def input_of(step: Step) -> Input:
    """A step of a list of adapters as the input of a merge.

    Raises
    ------
    UsageError
        It has block weights.
    """
    if step.blocks is not None:
        raise UsageError(
            "block weights were given to a merge of adapters",
            where=step.path,
            expected="FILE or FILE@SCALE",
            hint=f"bake with them: {option('lora', 'FILE@SCALE:BLOCKS')}",
        )
    return Input(step.path, step.strength)


def check_request(
    inputs: Sequence[Input], adapters: Sequence[Adapter], options: CombineOptions, has_base: bool
) -> str:
    """Refuse options that say nothing about these families; return ``para``, ``lora`` or ``mixed``.

    Raises
    ------
    UsageError
        An option that does not apply, a sequential merge of PaRas, a scale on a PaRa.
    FamilyError
        An adapter of another family; PaRa and LoRA together without a base.
    """
    families = {adapter.family for adapter in adapters}
    if not adapters:
        raise UsageError("there is nothing to merge", expected="at least one adapter")
    for adapter in adapters:
        if adapter.family not in ("para", "lora"):
            raise FamilyError(
                f"{' and '.join(adapter.families)} cannot be merged into one adapter by this version",
                where=adapter.path,
                expected="LoRAs, or PaRas",
                found=", ".join(f"{family} ({count} layers)" for family, count in adapter.families.items()),
                hint=f"bake them one after the other, each as {option('adapter')}",
            )
    if "para" in families:
        _check_paras(inputs, adapters, options)
    if families == {"para"}:
        _refuse_options("a merge of PaRas", {option("energy"): options.energy})
        return "para"
    if families == {"lora"}:
        _refuse_options("a merge of LoRAs", {option("gamma"): options.gamma, option("keep"): options.keep})
        return "lora"
    if not has_base:
        raise _without_base(adapters)
    _refuse_options(
        "PaRa and LoRA together: it would cut into the PaRa",
        {option("rank"): options.rank, option("energy"): options.energy},
    )
    return "mixed"


def _check_paras(inputs: Sequence[Input], adapters: Sequence[Adapter], options: CombineOptions) -> None:
    if options.merge == "sequential":
        raise UsageError(
            "a sequential merge of PaRas is no PaRa: a product of projectors is no projector",
            where=option("merge", "sequential"),
            expected=option("merge", "joint"),
            hint=f"bake the PaRas one after the other ({call('bake', merge='sequential')}), or merge them "
            "jointly",
        )
    for given, adapter in zip(inputs, adapters, strict=True):
        if adapter.family == "para" and given.scale != 1:
            raise UsageError(
                "a strength was given for a PaRa, whose file can hold none",
                where=given.path,
                expected="the file alone",
                found=f"@{given.scale:g}",
                hint="merge without it and give the strength to the bake: "
                f"{option('para', 'merged.safetensors@0.8')}",
            )
    if options.keep is not None and options.gamma is None and options.rank is None:
        raise UsageError(
            f"{option('keep')} was given without a boundary for the directions to stay within",
            where=option("keep", options.keep),
            hint=f"add {option('gamma')} or {option('rank')}, or leave {option('keep')} out",
        )


def _refuse_options(what: str, options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{' and '.join(given)} does not apply to {what}", where=given[0])


def _without_base(adapters: Sequence[Adapter]) -> FamilyError:
    names = {
        family: ", ".join(adapter.path.name for adapter in adapters if adapter.family == family)
        for family in ("para", "lora")
    }
    return FamilyError(
        "a PaRa and a LoRA cannot become one adapter without a base",
        where=f"PaRa {names['para']}, LoRA {names['lora']}",
        expected=f"adapters of one family, or {option('base')}",
        found="both families",
        hint=f"bake both ({option('para')} and {option('lora')}), or give {option('base')} to write the one "
        "LoRA that does the same to that base",
    )
