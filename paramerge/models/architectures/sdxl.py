"""Stable Diffusion XL base 1.0, and UNets that are it with blocks left out or a language model before it."""

from __future__ import annotations

from paramerge.models.blueprint import Blueprint, Encoder
from paramerge.models.blueprint_inventory import ClipConfig, UNetConfig
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.stable_diffusion import stable_diffusion
from paramerge.models.unet_facts import UNetTraits
from paramerge.models.unet_structure import standard_structure

CLIP_BIGG = ClipConfig(1280, 32, 20, 1280, "gelu", openclip=True)
_UNET = UNetConfig(
    (320, 640, 1280), (0, 2, 10), 10, 2048, (5, 10, 20), linear_projection=True, time_ids=6, pooled=1280
)
_BLUEPRINT = Blueprint(
    "sdxl",
    _UNET,
    (
        Encoder("text_encoder", "conditioner.embedders.0.transformer.", ClipConfig(768, 12, 12)),
        Encoder("text_encoder_2", "conditioner.embedders.1.model.", CLIP_BIGG),
    ),
)


_SDXL = stable_diffusion(
    _BLUEPRINT,
    vectors=(12, 20, 19),
    projected=False,
    label="Stable Diffusion XL",
    shown_by=r"^text_encoder_2\.(text_model\.encoder\.layers\.\d+\.|text_projection$)|^unet\.add_embedding\."
    r"|^unet\.(down_blocks|mid_block|up_blocks)\..*transformer_blocks\.([4-9]|\d\d)\.",
    modelspec="stable-diffusion-xl-v1-base",
    modelspec_read=("stable-diffusion-xl",),
    resolution="1024x1024",
    kohya=KohyaNames(
        "sdxl_base_v1-0",
        also=("sdxl",),
        prefixes={"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
    ),
    pipeline="StableDiffusionXLPipeline",
)


def _relative(
    name: str, layers: int, depths: tuple[int, ...], mid_depth: int, projected: bool | None = None
) -> ArchitectureRecord:
    structure = standard_structure((False, True, True), layers)
    traits = UNetTraits(structure, depths, mid_depth, added=True, projected=projected)
    return _SDXL.variant(name, unet=traits, ldm=None, blocks=None)


RECORDS = (
    _SDXL,
    _relative("sdxl-kolors", 2, (0, 2, 10), 10, projected=True),
    _relative("sdxl-ssd-1b", 2, (0, 2, 4), 0),
    _relative("sdxl-vega", 2, (0, 1, 2), 0),
    _relative("sdxl-koala-700m", 1, (0, 2, 5), 0),
    _relative("sdxl-koala-1b", 1, (0, 2, 6), 6),
)
"""With Kolors, SSD-1B, Segmind Vega and KOALA."""
