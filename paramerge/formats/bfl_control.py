"""Black Forest Labs' control LoRAs: bare names of FLUX.1's single file, and whole norms beside the factors.

``double_blocks.0.img_attn.norm.query_norm.scale`` takes the place of the base's; factors and their biases
(``lora_B.bias``) are named as PEFT names them.
"""

from __future__ import annotations

import re

from paramerge.formats.dialect import Dialect, Place
from paramerge.models.names import ModuleName

_KEY = re.compile(r"(?P<stem>(?:double|single)_blocks\.\d+\.(?:\w+\.)?norm\.(?:query|key)_norm)\.scale")


def _claims(key: str) -> bool:
    return key.endswith("_norm.scale") and _KEY.fullmatch(key) is not None


def _place(stem: str) -> Place | None:
    return Place(ModuleName("model", stem), False, BFL_CONTROL.key)


def _cut(key: str) -> tuple[str, str] | None:
    match = _KEY.fullmatch(key)
    return (match["stem"], "whole") if match else None


BFL_CONTROL = Dialect(
    key="bfl-control",
    names="norms of FLUX.1's single file",
    claims=_claims,
    place=_place,
    cut=_cut,
    endings={"whole": "scale"},
    variant_of="diffusers",
)
