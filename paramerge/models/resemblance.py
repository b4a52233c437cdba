"""Resemblances of layers' names to models, for messages; those that several architectures share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resemblance:
    """A title for people, and a regular expression that occurs in names of such layers.

    Names may be spelled with dots or with underscores: ``blocks[._]\\d+[._]attn``.
    """

    title: str
    pattern: str


STABLE_DIFFUSION = Resemblance(
    "a Stable Diffusion UNet", r"(down|up|input|output)_blocks[._]\d+[._]|mid(dle)?_block[._]"
)
FLUX_LIKE = Resemblance(
    "FLUX or a model made from it", r"double_blocks[._]\d+[._]|single_(transformer_)?blocks[._]\d+[._]"
)
DIFFUSION_TRANSFORMER = Resemblance(
    "a diffusion transformer such as FLUX, SD3 or Qwen-Image", r"transformer_blocks[._]\d+[._]"
)
CLIP_ENCODER = Resemblance("a CLIP text encoder", r"text_model[._]encoder[._]layers[._]\d+[._]")
T5_ENCODER = Resemblance("a T5 text encoder", r"block[._]\d+[._]layer[._]\d+[._]")
LANGUAGE_MODEL = Resemblance("a language model", r"layers[._]\d+[._](self_attn|mlp)[._]|\bh[._]\d+[._]")
VIDEO_TRANSFORMER = Resemblance(
    "a video transformer such as Wan", r"blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]"
)

SHARED = (DIFFUSION_TRANSFORMER, CLIP_ENCODER, T5_ENCODER, LANGUAGE_MODEL, VIDEO_TRANSFORMER)
"""Resemblances that are wider than one architecture's own, in the order in which they are tried, after those.
"""
