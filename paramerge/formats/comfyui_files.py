"""ComfyUI's dialect: ``diffusion_model.blocks.0.self_attn.q.lora_B.weight``, and an ``.alpha``.

Paths are the single file's. Text encoders are ``text_encoders.clip_l.transformer.`` and what transformers
calls their layers. ai-toolkit, diffusion-pipe and Kijai's tools write it as well.
"""

from __future__ import annotations

from paramerge.formats.comfyui import BUNDLED, bundled_encoder, without_prefix
from paramerge.formats.dialect import Dialect, Place
from paramerge.formats.diffusers import DIFFUSERS
from paramerge.formats.peft import AI_TOOLKIT
from paramerge.models.names import ModuleName

_MODEL = "diffusion_model."


def _claims(key: str) -> bool:
    return key.startswith(("diffusion_model.", "model.diffusion_model.", "text_encoders."))


def _place(stem: str) -> Place | None:
    found = DIFFUSERS.place(stem)
    known = without_prefix(stem) is not None or bundled_encoder(stem) is not None
    return found._replace(dialect=COMFYUI.key) if found is not None and known else None


def _stem(name: ModuleName, architecture: str | None) -> str:
    encoder = BUNDLED.get(name.component)
    return f"text_encoders.{encoder}.transformer.{name.path}" if encoder else f"{_MODEL}{name.path}"


COMFYUI = Dialect(
    key="comfyui",
    names="the single file's path behind diffusion_model",
    claims=_claims,
    place=_place,
    endings={"up": "lora_B.weight", "down": "lora_A.weight"},
    also_read=AI_TOOLKIT,
    spell=_stem,
    parts="kohya",
    original=True,
    variant_of=DIFFUSERS.key,
)
