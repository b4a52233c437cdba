"""VideoX-Fun's dialect, kohya's with two underscores: ``lora_unet__blocks_0_self_attn_q.lora_up.weight``."""

from __future__ import annotations

from paramerge.formats.dialect import Dialect, Place
from paramerge.formats.kohya import KOHYA
from paramerge.formats.layers import underscored

_PREFIXES = {"lora_unet__": "lora_unet_", "lora_te__": "lora_te_"}


def _claims(key: str) -> bool:
    return key.startswith(tuple(_PREFIXES))


def _place(stem: str) -> Place | None:
    for prefix, plain in _PREFIXES.items():
        if stem.startswith(prefix):
            spelled = underscored(plain + stem.removeprefix(prefix))
            return Place(spelled.name, spelled.layer, VIDEOX_FUN.key) if spelled else None
    return None


VIDEOX_FUN = Dialect(
    key="videox-fun",
    names="kohya's names with two underscores behind the component",
    claims=_claims,
    place=_place,
    underscored=True,
    variant_of=KOHYA.key,
)
