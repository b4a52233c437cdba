"""A user's request: an ordered list of steps and the options of the whole bake."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from paramerge.apply.amounts import check_amounts
from paramerge.apply.strengths import check_strength
from paramerge.errors import UsageError
from paramerge.files.dtype_names import KEEP, WRITTEN, parse_dtype, short_name
from paramerge.resolve.blocks import BlockWeights, parse_blocks
from paramerge.wording import option

Kind = Literal["para", "lora", "adapter"]
"""The kind that an adapter was given as: one of any family, or strictly a PaRa or a LoRA."""

MergeChoice = Literal["joint", "sequential"]

Rounding = Literal["nearest", "stochastic"]

LIFTS = ("BF16", "F16", "F32")
"""Dtypes to which layers are raised that would lose too much."""


@dataclass(frozen=True, slots=True)
class Step:
    """One adapter to apply: a PaRa with a strength in [0, 1], or one of another family with any finite scale.

    A plan names the kind by what the file is: ``para``, ``lora``, or ``adapter`` for every other family.
    """

    kind: Kind
    path: Path
    strength: float = 1.0
    blocks: BlockWeights | None = None
    """Factors on the strength, by block of the UNet."""

    def __post_init__(self) -> None:
        name = "strength" if self.kind == "para" else "scale"
        check_strength(self.strength, self.path, name)
        strengths = [self.strength * weight for weight in (self.blocks.values if self.blocks else ())]
        for value in strengths:
            check_strength(value, f"{self.path}: block weights", f"{name} in a block")
        wrong = [value for value in (self.strength, *strengths) if not 0 <= value <= 1]
        if self.kind == "para" and wrong:
            raise UsageError(
                "the strength of a PaRa is out of range",
                where=self.path,
                expected="0 (nothing removed) to 1 (the directions are gone)",
                found=wrong[0],
                hint="above 1 the layer would be reflected, below 0 amplified: neither reduces its rank",
            )


@dataclass(frozen=True, slots=True)
class BakeOptions:
    """The options that hold for the whole bake (the flags of ``paramerge bake``).

    Attributes
    ----------
    merge:
        The way in which neighbouring PaRas are combined: ``joint`` (projector onto the sum of their spans,
        order-free) or ``sequential`` (paper's equation 7, one after the other).
    gamma:
        The rank boundary of the paper's equation 8, in (0, 1], or None.
    only:
        Components (``unet``) or patterns of layer names (``unet.*attn2*``); empty for everything.
    dtype:
        Dtype of the output's UNet, text encoders and VAE, in any spelling (``fp16``, ``F16`` ...); ``keep``
        leaves each tensor's own.
    allow_unmatched:
        Go on where keys of an adapter land nowhere; they are counted and shown.
    private:
        Leave the names of the inputs out of the recipe; their hashes stay.
    content_hash:
        Whether the output's tensors are hashed in the same pass (docs/recipe.md); None where they are few.
    requantise:
        Write quantised layers that change in their own scheme again, with new scales and stochastic rounding;
        else they become plain numbers.
    quantise:
        The scheme in which Linear layers are written (:data:`paramerge.storage.written.QUANTISERS`), or None.
    allow_other_model:
        Take adapters that were made for another architecture, as far as their layers fit.
    rounding:
        Of values that a step or a merge changes: ``nearest``, or ``stochastic``: the mean of a change is
        kept, at the price of a larger error.
    lift:
        The dtype to which layers are raised that would keep too little of a step; None for none.
    accept_loss:
        Write an output that keeps less than half of a step.
    card:
        Write a model card: ``README.md`` in a folder, beside a file one of its name that ends in ``.md``.
    """

    merge: MergeChoice = "joint"
    gamma: float | None = None
    only: tuple[str, ...] = ()
    dtype: str = "keep"
    allow_unmatched: bool = False
    private: bool = False
    content_hash: bool | None = None
    requantise: bool = False
    quantise: str | None = None
    allow_other_model: bool = False
    rounding: Rounding = "nearest"
    lift: str | None = None
    accept_loss: bool = False
    card: bool = False

    def __post_init__(self) -> None:
        check_amounts(gamma=self.gamma)
        object.__setattr__(self, "dtype", short_name(parse_dtype(self.dtype, (KEEP, *WRITTEN))))
        if self.lift is not None:
            object.__setattr__(self, "lift", short_name(parse_dtype(self.lift, LIFTS, name="lift")))
        for name, value, choice in (
            ("merge", self.merge, MergeChoice),
            ("rounding", self.rounding, Rounding),
        ):
            if value not in get_args(choice):
                raise UsageError(
                    "no such choice", where=option(name), expected=", ".join(get_args(choice)), found=value
                )
        self._check_quantised()

    def _check_quantised(self) -> None:
        if self.quantise is not None and self.quantise not in (schemes := _quantisers()):
            raise UsageError(
                "no such choice",
                where=option("quantise"),
                expected=", ".join(schemes),
                found=self.quantise,
            )
        if self.requantise and (self.quantise is not None or self.dtype != KEEP):
            other = "quantise" if self.quantise is not None else "dtype"
            raise UsageError(
                "changed layers cannot be stored in two ways",
                where=option("requantise"),
                expected=f"{option('requantise')}, or {option(other)}",
                found="both",
            )


def _quantisers() -> Collection[str]:
    """The schemes that outputs can be quantised in; they need NumPy, which naming options does not."""
    from paramerge.storage.written import QUANTISERS

    return QUANTISERS.keys()


def parse_step(kind: Kind, text: str) -> Step:
    """Read ``FILE``, ``FILE@STRENGTH`` or ``FILE@STRENGTH:BLOCKS``.

    A file whose own name holds the ``@`` is taken as it is. Blocks are named (``IN04=0.5,OUT00=0``) or
    a vector.
    """
    if os.path.exists(text):  # noqa: PTH110 (Path.exists raises where text is too long for a name)
        return Step(kind, Path(text))
    name, at, number = text.rpartition("@")
    if not at:
        _refuse_other_spelling(text)
        return Step(kind, Path(text))
    number, colon, blocks = number.partition(":")
    try:
        strength = float(number)
    except ValueError:
        raise UsageError(
            "the strength is not a number",
            where=option(kind, text),
            expected="FILE, FILE@NUMBER or FILE@NUMBER:BLOCKS, such as style.safetensors@0.8",
            found=repr(number),
        ) from None
    return Step(kind, Path(name), strength, parse_blocks(blocks) if colon else None)


def _refuse_other_spelling(text: str) -> None:
    """Refuse ``FILE:0.8``, ``FILE=0.8`` and a prompt's ``<lora:NAME:0.8>``, as other programs have it."""
    if text.startswith("<") and text.endswith(">"):
        _, name, number = (*text[1:-1].split(":"), "", "")[:3]
    else:
        cut = max(text.rfind(":"), text.rfind("="), 0)
        name, number = text[:cut], text[cut + 1 :]
    try:
        strength = float(number)
    except ValueError:
        return
    if name:
        raise UsageError(
            "the strength is given in another program's way",
            where=text,
            expected="FILE@NUMBER",
            hint=f"give {name}@{strength:g}",
        )
