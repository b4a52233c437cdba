"""XLabs' dialect for FLUX.1, which USO writes, too: factors of attention processors.

    double_blocks.0.processor.qkv_lora1.down.weight      1 is the picture's stream, 2 the text's
    single_blocks.0.processor.proj_lora.up.weight

There is no alpha. Of a single block the q, k and v of the stacked layer are changed, without its MLP.
"""

from __future__ import annotations

import re

from paramerge.formats.dialect import Dialect, Place
from paramerge.models.names import ModuleName

_STEM = re.compile(
    r"(?:diffusion_model\.)?"
    r"(?P<path>(?:double_blocks\.\d+\.processor\.(?:qkv|proj)_lora[12]"
    r"|single_blocks\.\d+\.processor\.(?:qkv|proj)_lora))"
)
_ENDINGS = {"up": "up.weight", "down": "down.weight"}
_KEY = re.compile(rf"(?P<stem>{_STEM.pattern})\.(?P<role>up|down)\.weight")


def _claims(key: str) -> bool:
    return "_blocks." in key and (_KEY.fullmatch(key) or _STEM.fullmatch(key)) is not None


def _place(stem: str) -> Place | None:
    match = _STEM.fullmatch(stem)
    return Place(ModuleName("transformer", match["path"]), True, XLABS.key) if match else None


def _cut(key: str) -> tuple[str, str] | None:
    match = _KEY.fullmatch(key)
    return (match["stem"], match["role"]) if match else None


XLABS = Dialect(
    key="xlabs",
    names="FLUX.1's blocks and the layers of their attention",
    claims=_claims,
    place=_place,
    cut=_cut,
    endings=_ENDINGS,
)
