"""OneTrainer's dialect: kohya's, with diffusers' names of a transformer behind ``lora_transformer_``."""

from __future__ import annotations

from paramerge.formats.dialect import Dialect, Place
from paramerge.formats.kohya import KOHYA
from paramerge.formats.layers import underscored
from paramerge.models.names import ModuleName

_PREFIXES = {
    "unet": "lora_unet_",
    "transformer": "lora_transformer_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
}


def _claims(key: str) -> bool:
    return key.startswith("lora_transformer_")


def _place(stem: str) -> Place | None:
    spelled = underscored(stem)
    return Place(spelled.name, spelled.layer, ONETRAINER.key) if spelled else None


def _stem(name: ModuleName, architecture: str | None) -> str:
    return _PREFIXES.get(name.component, "") + name.path.replace(".", "_")


ONETRAINER = Dialect(
    key="onetrainer",
    names="diffusers' names with underscores, behind the component",
    claims=_claims,
    place=_place,
    spell=_stem,
    parts="kohya",
    underscored=True,
    metadata=KOHYA.metadata,
    variant_of=KOHYA.key,
)
