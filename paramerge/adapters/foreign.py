"""Families that are recognised and refused by name: what they are, and by which endings of keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Foreign:
    """A family that cannot be baked.

    Attributes
    ----------
    label:
        Its name for people.
    pattern:
        A regular expression for what stands behind a layer's name in its keys.
    of:
        The key of the family that it is a variant of, whose keys its layers have, too; empty for none.
    """

    label: str
    pattern: str
    of: str = ""


FOREIGN = (
    Foreign("T-LoRA", r"(?:lambda_layer|q_layer\.weight|p_layer\.weight)", "lora"),
    Foreign("AdaLoRA", r"(?:lora_E|ranknum)(?:\.\w+)?", "lora"),
    Foreign("VeRA", r"vera_lambda_[bd](?:\.\w+)?"),
    Foreign("OFT of an early version", r"(?:oft_diag|oft_r(?:\.\w+){0,2}|oft_s(?:\.\w+){0,2})", "oft"),
    Foreign("OFT of an embedding", r"oft_embedding_R(?:\.\w+){0,2}", "oft"),
    Foreign("weight replacement", "set_weight", "full"),
    Foreign("LoRA with a sparse residual", "bias_(?:indices|values|size)", "lora"),
    Foreign("LoRA with a learned scalar", "scalar", "lora"),
)

PEFT_TUNERS = (
    "adamss|beft|bone|c3a|deft|delora|fourierft|frod|glora|gralora|hira|hra|lily|ln_tuning|miss|osf|peanut|poly|psoft"
    "|pvera|randlora|road|shadow|shira|supertuning|tinylora|unilora|vblora|waveft|xlora"
)
"""PEFT's other tuners, whose tensors are called by their names: ``hra_u``."""
