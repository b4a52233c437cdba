"""The names of FLUX.1's layers: those of single files and of kohya's and ComfyUI's adapters, and diffusers'.

Single files stack projections that read the same input into one matrix: q, k and v, and in the single blocks
the MLP's first layer below them. Their parts are rows, in this order. One layer, the last modulation, has its
two halves (shift and scale) the other way round in diffusers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "FluxLayer",
    "is_divided",
    "is_single_file_key",
    "single_file_layer",
    "single_file_path",
    "split_rows",
]


@dataclass(frozen=True, slots=True)
class FluxLayer:
    """What a layer of the single file is in diffusers: one path, several stacked by rows, or one swapped."""

    parts: tuple[str, ...]
    swapped: bool = False
    """Whether the first half of the rows is diffusers' second half, and the reverse."""


_DOUBLE_BLOCK = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
_SINGLE_BLOCK = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_LAST_MODULATION = ("final_layer.adaLN_modulation.1", "norm_out.linear")

_BLOCKS = (
    ("double_blocks", "transformer_blocks", _DOUBLE_BLOCK),
    ("single_blocks", "single_transformer_blocks", _SINGLE_BLOCK),
)
_NUMBERED = re.compile(r"(?P<blocks>\w+)\.(?P<number>\d+)\.(?P<layer>.+)")


def single_file_layer(path: str) -> FluxLayer | None:
    """What the single file's layer ``path`` (without prefix) is in diffusers; None if there is no such."""
    if path == _LAST_MODULATION[0]:
        return FluxLayer((_LAST_MODULATION[1],), swapped=True)
    if path in _OUTSIDE:
        return FluxLayer((_OUTSIDE[path],))
    match = _NUMBERED.fullmatch(path)
    for old, new, layers in _BLOCKS:
        if match and match["blocks"] == old and match["layer"] in layers:
            return FluxLayer(tuple(f"{new}.{match['number']}.{part}" for part in layers[match["layer"]]))
    return None


def single_file_path(path: str) -> str | None:
    """The single file's layer that diffusers' ``path`` is, or is a part of; None if there is no such."""
    if path == _LAST_MODULATION[1]:
        return _LAST_MODULATION[0]
    for old, new in _OUTSIDE.items():
        if path == new:
            return old
    match = _NUMBERED.fullmatch(path)
    for old, new, layers in _BLOCKS:
        if match and match["blocks"] == new:
            for layer, parts in layers.items():
                if match["layer"] in parts:
                    return f"{old}.{match['number']}.{layer}"
    return None


def is_divided(path: str) -> bool:
    """Whether the layouts differ in more than this layer's name, spelled with dots or with underscores."""
    return re.sub(r"_\d+_", "_0_", path.replace(".", "_"), count=1) in _DIVIDED


_DIVIDED = {
    *(name.replace(".", "_") for name in _LAST_MODULATION),
    *(
        f"{blocks}_0_{name.replace('.', '_')}"
        for old, new, layers in _BLOCKS
        for layer, parts in layers.items()
        if len(parts) > 1
        for blocks, name in ((old, layer), *((new, part) for part in parts))
    ),
}


def is_single_file_key(key: str) -> bool:
    """Whether ``key`` (without prefix) is named as in FLUX's single file."""
    stem, _, kind = key.rpartition(".")
    return kind in ("weight", "bias", "scale") and single_file_layer(stem) is not None


def split_rows(parts: int, rows: int, columns: int) -> tuple[tuple[int, int], ...] | None:
    """The rows of each part of a stacked matrix (rows, columns): all but the last are square.

    None where the matrix is too small for that.
    """
    starts = [i * columns for i in range(parts)]
    if parts > 1 and starts[-1] >= rows:
        return None
    return tuple(zip(starts, [*starts[1:], rows], strict=True))
