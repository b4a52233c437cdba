"""The architectures that paramerge knows, a file each, in the order in which they are tried.

Narrower ones come first: FLUX.2 and Chroma have keys of FLUX.1 besides their own, and the last are vague.
"""

from __future__ import annotations

from paramerge.models.architectures import (
    auraflow,
    chroma,
    cosmos_predict2,
    flux,
    flux2,
    hidream,
    hunyuan_video,
    krea2,
    ltx,
    lumina2,
    pixart,
    qwen_image,
    sd2,
    sd3,
    sd15,
    sdxl,
    sdxl_refiner,
    wan,
    z_image,
)
from paramerge.models.architectures.others import OTHERS
from paramerge.models.record import ArchitectureRecord

__all__ = ["BUILT_IN"]

BUILT_IN: tuple[ArchitectureRecord, ...] = (
    *sd15.RECORDS,
    *sd2.RECORDS,
    *sdxl.RECORDS,
    *sdxl_refiner.RECORDS,
    *flux2.RECORDS,
    *chroma.RECORDS,
    *hunyuan_video.RECORDS,
    *flux.RECORDS,
    *sd3.RECORDS,
    *auraflow.RECORDS,
    *qwen_image.RECORDS,
    *krea2.RECORDS,
    *cosmos_predict2.RECORDS,
    *ltx.RECORDS,
    *hidream.RECORDS,
    *pixart.RECORDS,
    OTHERS["pixart-or-sana"],
    OTHERS["hunyuan-dit"],
    *wan.RECORDS,
    *lumina2.RECORDS,
    *z_image.RECORDS,
    OTHERS["lumina-or-z-image"],
    OTHERS["stable-cascade"],
    OTHERS["svd"],
    OTHERS["diffusion-transformer"],
    OTHERS["language-model"],
    OTHERS["minimax_h3"],
)
