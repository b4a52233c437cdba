"""HunyuanVideo-I2V's trainer: ``Hunyuan_video_I2V_lora_double_blocks_0_img_attn_qkv.lora_up.weight``."""

from __future__ import annotations

from paramerge.formats.dialect import Dialect, Place
from paramerge.models.names import ModuleName

_PREFIX = "Hunyuan_video_I2V_lora_"


def _claims(key: str) -> bool:
    return key.startswith(_PREFIX)


def _place(stem: str) -> Place | None:
    path = stem.removeprefix(_PREFIX)
    name = ModuleName("transformer", path)
    return Place(name, True, HUNYUAN_I2V.key) if path.isidentifier() else None


HUNYUAN_I2V = Dialect(
    key="hunyuan-i2v",
    names="a prefix of its own, and the original's path with underscores",
    claims=_claims,
    place=_place,
    underscored=True,
)
