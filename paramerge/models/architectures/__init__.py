"""The architectures that paramerge knows, a file each, in the order in which they are tried.

Narrower ones come first: FLUX.2 and Chroma have keys of FLUX.1 besides their own, and the last are vague.
"""

from __future__ import annotations

from paramerge.models.architectures import (
    chroma,
    flux,
    flux2,
    qwen_image,
    sd2,
    sd3,
    sd15,
    sdxl,
    sdxl_refiner,
    wan,
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
    OTHERS["hunyuan-video"],
    *flux.RECORDS,
    *sd3.RECORDS,
    OTHERS["auraflow"],
    *qwen_image.RECORDS,
    OTHERS["pixart-or-sana"],
    OTHERS["hunyuan-dit"],
    *wan.RECORDS,
    OTHERS["lumina-or-z-image"],
    OTHERS["stable-cascade"],
    OTHERS["svd"],
    OTHERS["diffusion-transformer"],
    OTHERS["language-model"],
    OTHERS["minimax_h3"],
)
