"""The names of the VAE's tensors: diffusers' and those of single files.

Adapters do not reach the VAE; the names are needed where a whole checkpoint is laid out, or meets another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LDM_VAE_PREFIX = "first_stage_model."
"""The prefix of the VAE's keys in a single file."""

_RULES = (
    (re.compile(r"mid_block\.attentions\.0\.(to_out\.0|proj_attn)"), "mid.attn_1.proj_out"),
    (re.compile(r"mid_block\.attentions\.0\.group_norm"), "mid.attn_1.norm"),
    (re.compile(r"mid_block\.attentions\.0\.(?:to_([qkv])|(?=[qkv])(\w)\w*)"), r"mid.attn_1.\1\2"),
    (re.compile(r"conv_norm_out"), "norm_out"),
    (re.compile(r"conv_shortcut"), "nin_shortcut"),
    (re.compile(r"down_blocks\.(\d+)\.resnets\.(\d+)"), r"down.\1.block.\2"),
    (re.compile(r"down_blocks\.(\d+)\.downsamplers\.0"), r"down.\1.downsample"),
)


def vae_names(keys: Iterable[str]) -> dict[str, str]:
    """The name in single files, without prefix, of every key of a VAE in whatever layout."""
    plain = {key: re.sub(r"^(first_stage_model|vae)\.", "", key) for key in keys}
    found = (re.search(r"\bdown_blocks\.(\d+)\.", name) for name in plain.values())
    levels = 1 + max((int(match[1]) for match in found if match), default=-1)
    return {key: vae_to_ldm(name, levels) if levels else name for key, name in plain.items()}


def vae_to_ldm(key: str, levels: int) -> str:
    """The single-file key (without prefix) of diffusers' VAE ``key``; ``levels``: how many resolutions.

    LDM counts the decoder's levels from the finest, diffusers from the coarsest.
    """
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key)
    key = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    return re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)", lambda m: _up(m, levels), key)


def _up(match: re.Match[str], levels: int) -> str:
    level = levels - 1 - int(match[1])
    return f"up.{level}.block.{match[3]}" if match[2] == "resnets" else f"up.{level}.upsample"
