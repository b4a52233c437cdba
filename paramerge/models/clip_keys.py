"""The names of CLIP text encoder tensors: transformers' and OpenCLIP's, and the prefixes of files.

The canonical name of a tensor is transformers' key with the ``text_model.`` prefix, whether or not the file
has it. CLIP-L is in single files under transformers' names behind a prefix; the larger encoders (bigG in
SDXL, H in SD2) are there under OpenCLIP's, where q, k and v are one stacked matrix ``attn.in_proj_weight``
(rows q, then k, then v) and ``text_projection`` is a Linear's weight transposed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncoderPrefix:
    """The place of a text encoder in a single file, and the naming of its keys."""

    prefix: str
    component: str
    openclip: bool = False
    own: bool = False
    """Whether the names behind the prefix are no CLIP's but the encoder's own (T5, a language model)."""


BUNDLED_ENCODERS = tuple(
    EncoderPrefix(f"text_encoders.{name}.{inner}", component)
    for inner in ("transformer.", "")
    for name, component in (
        ("clip_l", "text_encoder"),
        ("clip_h", "text_encoder"),
        ("clip_g", "text_encoder_2"),
    )
)
"""The text encoders that ComfyUI and Forge save beside a model, under transformers' names."""

_ENCODER_TENSOR = re.compile(r"(embeddings|encoder|final_layer_norm)\.")


def canonical_key(key: str) -> str | None:
    """Transformers' ``key`` with ``text_model.`` put before if missing; None if it is no text encoder's."""
    if key.startswith("text_model.") or key == "text_projection.weight":
        return key
    return f"text_model.{key}" if _ENCODER_TENSOR.match(key) else None


@dataclass(frozen=True, slots=True)
class OpenClipTensor:
    """An OpenCLIP tensor by transformers' names.

    ``parts`` are canonical keys whose tensors are stacked along the rows, in this order; ``transposed`` says
    that it is stored as the transpose of the one part.
    """

    parts: tuple[str, ...]
    transposed: bool = False


TOP_LEVEL = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
"""OpenCLIP's keys outside its blocks, and transformers'."""

BLOCK_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
"""OpenCLIP's layers of a block with one tensor of each kind, and transformers'."""

_OPENCLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)$")


def from_openclip(key: str) -> OpenClipTensor | None:
    """The parts of OpenCLIP's ``key`` (without prefix); None if transformers lacks it (``logit_scale``)."""
    if key in TOP_LEVEL:
        return OpenClipTensor((TOP_LEVEL[key],), transposed=key == "text_projection")
    match = _OPENCLIP_BLOCK.match(key)
    if match is None:
        return None
    number, layer, kind = match.groups()
    stem = f"text_model.encoder.layers.{number}"
    if layer == "attn.in_proj":
        return OpenClipTensor(tuple(f"{stem}.self_attn.{x}_proj.{kind}" for x in "qkv"))
    if layer not in BLOCK_LAYERS:
        return None
    return OpenClipTensor((f"{stem}.{BLOCK_LAYERS[layer]}.{kind}",))
