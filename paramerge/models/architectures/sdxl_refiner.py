"""Stable Diffusion XL refiner 1.0: one text encoder, which diffusers too calls the second."""

from __future__ import annotations

from paramerge.models.architectures.sdxl import CLIP_BIGG
from paramerge.models.blueprint import Blueprint, Encoder
from paramerge.models.blueprint_inventory import UNetConfig
from paramerge.models.stable_diffusion import stable_diffusion

_UNET = UNetConfig(
    (384, 768, 1536, 1536),
    (0, 4, 4, 0),
    4,
    1280,
    (6, 12, 24, 24),
    linear_projection=True,
    time_ids=5,
    pooled=1280,
)
_BLUEPRINT = Blueprint(
    "sdxl-refiner",
    _UNET,
    (Encoder("text_encoder_2", "conditioner.embedders.0.model.", CLIP_BIGG),),
)


RECORDS = (
    stable_diffusion(
        _BLUEPRINT,
        vectors=(26, 25),
        label="Stable Diffusion XL refiner",
        modelspec="stable-diffusion-xl-v1-refiner",
        modelspec_read=("stable-diffusion-xl-v1-refiner",),
    ),
)
