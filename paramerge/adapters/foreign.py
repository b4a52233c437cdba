"""Families that are refused by name, each with the endings of keys by which it is recognised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Foreign:
    """A family that cannot be baked.

    Attributes
    ----------
    label:
        Its name for people.
    endings:
        The endings of its keys, as in a family's forms.
    of:
        The key of the family that it is a variant of, whose keys its layers have, too; empty for none.
    """

    label: str
    endings: tuple[str, ...]
    of: str = ""


FOREIGN = (
    Foreign("T-LoRA", ("lambda_layer", "q_layer.weight", "p_layer.weight"), "lora"),
    Foreign("AdaLoRA", ("lora_E.<name>", "ranknum.<name>"), "lora"),
    Foreign("VeRA", ("vera_lambda_b.<name>", "vera_lambda_d.<name>")),
    Foreign("OFT of an early version", ("oft_diag", "oft_r.<name>.<name>", "oft_s.<name>.<name>"), "oft"),
    Foreign("OFT of an embedding", ("oft_embedding_R.<name>.<name>",), "oft"),
    Foreign("weight of another shape", ("reshape_weight",)),
    Foreign("LoRA with a sparse residual", ("bias_indices", "bias_values", "bias_size"), "lora"),
    Foreign("LoRA with a learned scalar", ("scalar",), "lora"),
)

_TUNERS = (
    "adamss beft bone c3a deft delora fourierft frod glora gralora hira hra lily ln_tuning miss osf peanut"
    " poly psoft pvera randlora road shadow shira supertuning tinylora unilora vblora waveft xlora"
)
PEFT_TUNERS = tuple(_TUNERS.split())
"""PEFT's other tuners, whose tensors are called by their names: ``hra_u``."""
