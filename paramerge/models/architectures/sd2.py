"""Stable Diffusion 2.0 and 2.1, whose tensors look the same at 512 and 768 pixels, and their relatives."""

from __future__ import annotations

from paramerge.models.blueprint import Blueprint, Encoder
from paramerge.models.blueprint_inventory import ClipConfig, UNetConfig
from paramerge.models.record import KohyaNames
from paramerge.models.stable_diffusion import stable_diffusion
from paramerge.models.unet_facts import UNetTraits
from paramerge.models.unet_structure import standard_structure

_CLIP_H = ClipConfig(1024, 24, 16, 1024, "gelu", openclip=True, unused_layers=1)
_BLUEPRINT = Blueprint(
    "sd2",
    UNetConfig((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024, (5, 10, 20, 20), linear_projection=True),
    (Encoder("text_encoder", "cond_stage_model.model.", _CLIP_H),),
)


_SD2 = stable_diffusion(
    _BLUEPRINT,
    vectors=(17, 26, 25),
    label="Stable Diffusion 2",
    encoder_width=1024,
    modelspec="stable-diffusion-v2",
    modelspec_read=("stable-diffusion-v2",),
    kohya=KohyaNames("sd_v2", also=("sd_2",), v2=True),
    pipeline="StableDiffusionPipeline",
)
_UNCLIP = UNetTraits(
    standard_structure((True, True, True, False)), (1, 1, 1, 0), 1, classes=True, linear=True
)
_UPSCALER = UNetTraits(
    standard_structure((False, True, True, True)), (0, 1, 1, 1), 1, classes=True, linear=True
)

RECORDS = (
    _SD2,
    _SD2.variant("sd2-unclip", unet=_UNCLIP, ldm=None, blocks=None),
    _SD2.variant("sd2-upscaler", unet=_UPSCALER, ldm=None, blocks=None),
)
"""With the UNet that starts from pictures, and the upscaler."""
