"""Stable Diffusion 1.5, and UNets that are it with blocks left out (BK-SDM: small-sd and tiny-sd)."""

from __future__ import annotations

from paramerge.models.blueprint import Blueprint, Encoder
from paramerge.models.blueprint_inventory import ClipConfig, UNetConfig
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.stable_diffusion import stable_diffusion
from paramerge.models.unet_facts import UNetTraits
from paramerge.models.unet_structure import standard_structure

_BLUEPRINT = Blueprint(
    "sd15",
    UNetConfig((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, (8, 8, 8, 8)),
    (Encoder("text_encoder", "cond_stage_model.transformer.", ClipConfig(768, 12, 12)),),
)


_SD15 = stable_diffusion(
    _BLUEPRINT,
    vectors=(17, 26, 25),
    label="Stable Diffusion 1.5",
    modelspec="stable-diffusion-v1",
    modelspec_read=("stable-diffusion-v1",),
    resolution="512x512",
    kohya=KohyaNames("sd_v1", also=("sd_1.5",)),
    pipeline="StableDiffusionPipeline",
)


def _distilled(name: str, levels: int, mid_depth: int, linear: bool | None = None) -> ArchitectureRecord:
    attention = (True, True, True, False)[:levels]
    traits = UNetTraits(
        standard_structure(attention, 1), tuple(map(int, attention)), mid_depth, linear=linear
    )
    return _SD15.variant(name, unet=traits, ldm=None, blocks=None)


RECORDS = (
    _SD15,
    _SD15.variant("sd15-inpainting", modelspec="stable-diffusion-v1-inpainting"),
    _distilled("sd15-small", 4, 1, linear=False),
    _distilled("sd15-small-without-middle", 4, 0),
    _distilled("sd15-tiny", 3, 0),
)
