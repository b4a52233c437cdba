"""kohya's dialect: ``lora_unet_..._to_q.lora_up.weight``, with an ``.alpha`` for each layer.

Text encoders are ``lora_te_`` (SD1, SD2) or ``lora_te1_`` and ``lora_te2_`` (SDXL). The UNet's names come in
two spellings: diffusers' (``down_blocks_0_attentions_0``) and, for SDXL, LDM's (``input_blocks_4_1``), which
tools call "sgm". LoCon adds convolutions and LyCORIS the Tucker core ``lora_mid``; LyCORIS around a bare UNet
writes ``lycoris_`` for ``lora_unet_``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from paramerge.formats.layers import underscored_layer
from paramerge.formats.pairs import Part

__all__ = ["dialect_of", "is_kohya", "read_key"]

_KEY = re.compile(r"(?P<stem>[^.]+)\.(?:lora_(?P<role>up|down|mid)\.weight|(?P<alpha>alpha))")


def is_kohya(key: str) -> bool:
    """Whether ``key`` has this dialect's form; its layer need not be known."""
    match = _KEY.fullmatch(key)
    return match is not None and match["stem"].startswith(("lora_", "lycoris_"))


def read_key(key: str) -> Part | None:
    """Understand one key; None if it names no layer or no part of a LoRA."""
    match = _KEY.fullmatch(key)
    spelled = underscored_layer(match["stem"]) if match else None
    if match is None or spelled is None:
        return None
    return Part(spelled.name, match["role"] or "alpha", key)


def dialect_of(keys: Iterable[str]) -> str:
    """``kohya-sgm`` if any layer is spelled in LDM's numbering, else ``kohya``."""
    layers = (underscored_layer(key.partition(".")[0]) for key in keys)
    return "kohya-sgm" if any(layer is not None and layer.ldm for layer in layers) else "kohya"
