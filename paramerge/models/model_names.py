"""Models that are not Stable Diffusion's UNets, recognised by keys that only they have.

Their layers go by the names that the file has: nothing but the architecture's own name is known of most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MODELS", "UNET_LIKE", "KnownModel", "allows", "looks_like", "recognise", "resemblances"]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """An architecture: what it is called in reports, and keys that it has."""

    name: str
    patterns: tuple[str, ...]
    """Regular expressions; each must occur in some key, with whatever prefix."""
    component: str = "transformer"
    """What a file of it is, where nothing else says so."""
    vague: bool = False
    """Whether the name is of many models, so that a configuration's own name for it says more."""


MODELS = (
    KnownModel("flux2", (r"double_stream_modulation_img\.lin(ear)?\.",)),
    KnownModel(
        "chroma", (r"distilled_guidance_layer\.", r"\b(double|transformer)_blocks\.\d+\.(img_)?attn\.")
    ),
    KnownModel("hunyuan-video", (r"individual_token_refiner\.|token_refiner\.refiner_blocks\.",)),
    KnownModel(
        "flux",
        (
            r"double_blocks\.\d+\.img_attn\.qkv\.|\btransformer_blocks\.\d+\.attn\.add_q_proj\.",
            r"single_blocks\.\d+\.linear1\.|single_transformer_blocks\.\d+\.proj_mlp\.",
            r"\b(vector_in\.in_layer|time_text_embed\.text_embedder\.linear_1)\.",
        ),
    ),
    KnownModel(
        "sd3",
        (r"joint_blocks\.\d+\.|\btransformer_blocks\.\d+\.norm1_context\.", r"\bpos_embed\b"),
    ),
    KnownModel(
        "auraflow",
        (
            r"double_layers\.\d+\.|\bjoint_transformer_blocks\.\d+\.",
            r"register_tokens|positional_encoding",
        ),
    ),
    KnownModel("qwen-image", (r"transformer_blocks\.\d+\.img_mod\.", r"\bimg_in\.")),
    KnownModel("pixart-or-sana", (r"adaln_single\.|blocks\.\d+\.cross_attn\.(q|kv)_linear\.",), vague=True),
    KnownModel("hunyuan-dit", (r"blocks\.\d+\.(attn2\.kv_proj|default_modulation)\.",)),
    KnownModel("wan", (r"blocks\.\d+\.(self_attn\.norm_q|attn1\.norm_q)\.", r"patch_embedding\.")),
    KnownModel("lumina-or-z-image", (r"cap_embedder\.|noise_refiner\.\d+\.", r"\blayers\.\d+\."), vague=True),
    KnownModel("stable-cascade", (r"down_blocks\.\d+\.\d+\.channelwise\.|clip_txt_mapper\.",)),
    KnownModel("svd", (r"\.time_stack\.|\.time_mixer\.|\.spatial_res_block\.",), "unet"),
    KnownModel(
        "diffusion-transformer",
        (r"^([\w.]*\.)?transformer_blocks\.\d+\.(scale_shift_table$|attn1?\.to_q\.)|patchify_proj\.",),
        vague=True,
    ),
    KnownModel(
        "language-model",
        (r"layers\.\d+\.self_attn\.q_proj\.|\bh\.\d+\.attn\.c_attn\.", r"\b(embed_tokens|wte)\.weight$"),
        "model",
        vague=True,
    ),
)
"""In the order in which they are tried: what is narrower comes first."""

_BESIDE = re.compile(r"(^|\.)(controlnet_\w+|control_model|motion_modules)\.")
"""Networks that run beside a model and are built of its blocks."""

_COMPILED = [(model, [re.compile(pattern) for pattern in model.patterns]) for model in MODELS]
UNET_LIKE = re.compile(r"^(?!.*(decoder|motion_modules)\.).*\b(output_blocks|up_blocks)\.\d+\.")
"""A block on a UNet's way up, which a ControlNet lacks and only a VAE's decoder has besides."""


def recognise(keys: Iterable[str]) -> KnownModel | None:
    """The model that has these keys; None where there is none that is known, or it is a plain UNet."""
    keys = list(keys)
    if any(_BESIDE.search(key) for key in keys):
        return None
    unet = any(UNET_LIKE.match(key) for key in keys)
    for model, patterns in _COMPILED:
        if unet and model.name not in ("stable-cascade", "svd"):
            continue
        if all(any(pattern.search(key) for key in keys) for pattern in patterns):
            return model
    return None


_ADAPTED = (
    ("a Stable Diffusion UNet", r"(down|up|input|output)_blocks[._]\d+[._]|mid(dle)?_block[._]"),
    ("FLUX or a model made from it", r"double_blocks[._]\d+[._]|single_(transformer_)?blocks[._]\d+[._]"),
    ("Stable Diffusion 3", r"joint_blocks[._]\d+[._]"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mod|mlp)[._]"),
    ("a diffusion transformer such as FLUX, SD3 or Qwen-Image", r"transformer_blocks[._]\d+[._]"),
    ("a CLIP text encoder", r"text_model[._]encoder[._]layers[._]\d+[._]"),
    ("a T5 text encoder", r"block[._]\d+[._]layer[._]\d+[._]"),
    ("a language model", r"layers[._]\d+[._](self_attn|mlp)[._]|\bh[._]\d+[._]"),
    ("a video transformer such as Wan", r"blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]"),
)
_STATED: dict[str, tuple[str, ...]] = {
    "a Stable Diffusion UNet": ("sd15", "sd2", "sdxl"),
    "FLUX or a model made from it": ("flux", "chroma"),
    "Stable Diffusion 3": ("sd3",),
    "Qwen-Image": ("qwen",),
    "a diffusion transformer such as FLUX, SD3 or Qwen-Image": ("flux", "chroma", "sd3", "qwen"),
    "a T5 text encoder": ("flux", "chroma", "sd3"),
    "a language model": (),
    "a video transformer such as Wan": ("wan", "hunyuan"),
}
"""Which architectures metadata may state for layers of these names; by others nothing is excluded."""
_ADAPTED_COMPILED = [(title, re.compile(pattern)) for title, pattern in _ADAPTED]


def looks_like(paths: Iterable[str]) -> str | None:
    """What the names of an adapter's layers remind of, for messages; None if of nothing known."""
    return next(iter(resemblances(paths)), None)


def resemblances(paths: Iterable[str]) -> list[str]:
    """All that names of layers remind of; what is narrower comes first."""
    paths = list(paths)
    return [title for title, pattern in _ADAPTED_COMPILED if any(pattern.search(path) for path in paths)]


def allows(paths: Iterable[str], architecture: str) -> bool:
    """Whether layers of these names can be of an architecture that metadata state (``sd15``, ``flux`` ...).

    Text encoders are in several, and names that remind of nothing exclude nothing.
    """
    found = [_STATED[title] for title in resemblances(paths) if title in _STATED]
    return not found or any(architecture.startswith(known) for known in found[0])
