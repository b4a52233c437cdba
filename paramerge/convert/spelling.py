"""How each format spells a layer's name; what cannot be spelled so that it is read back is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from paramerge.errors import UsageError
from paramerge.formats import peft
from paramerge.formats.layers import (
    bare_layer,
    bare_norm,
    dotted_layer,
    dotted_norm,
    underscored_layer,
    underscored_norm,
)
from paramerge.models.names import MODEL, ModuleName
from paramerge.models.unet_keys import UNetKeyMap
from paramerge.models.unet_structure import standard_structure

__all__ = ["ENDINGS", "Spelling", "spelling_of"]

Spelling = Callable[[ModuleName], str]
"""From a layer (or a norm, without ``.weight``) to what stands in a key before the part's own name."""

_KOHYA_ENDINGS = {
    "up": "lora_up.weight",
    "down": "lora_down.weight",
    "mid": "lora_mid.weight",
    **{f"{name}": f"{name}.weight" for name in ("a1", "a2", "b1", "b2", "bm")},
}
_PEFT_ENDINGS = {"up": "lora_B.weight", "down": "lora_A.weight", "magnitude": "lora_magnitude_vector"}
ENDINGS = {
    "kohya": _KOHYA_ENDINGS,
    "kohya-sgm": _KOHYA_ENDINGS,
    "diffusers": _PEFT_ENDINGS,
    "peft": _PEFT_ENDINGS,
    "deft": {"basis": "deft_P"},
}
"""Of each format the ends of its keys, by the roles of :mod:`paramerge.formats.roles`; others stay."""

_LEVELS = {
    "sd15": (True, True, True, False),
    "sd2": (True, True, True, False),
    "sdxl": (False, True, True),
    "sdxl-refiner": (False, True, True, False),
}
"""Which levels of a UNet, from the finest, have attention."""


def spelling_of(to: str, architecture: str | None) -> Spelling:
    """The spelling of the format ``to``; its calls raise UsageError for a name that it does not have."""
    if to in ("peft", "deft"):
        return _peft
    if to == "diffusers":
        return _diffusers
    first = "lora_te1_" if architecture == "sdxl" else "lora_te_"
    prefixes = {"unet": "lora_unet_", "text_encoder": first, "text_encoder_2": "lora_te2_"}

    def kohya(name: ModuleName) -> str:
        path: str | None = name.path
        if to == "kohya-sgm" and name.component == "unet":
            path = _ldm_blocks(architecture).to_ldm(name.path)
        stem = prefixes.get(name.component, "") + (path or "").replace(".", "_")
        spelled = underscored_norm(stem) or underscored_layer(stem)
        if not path or spelled is None or spelled.name != name:
            raise _nameless(name, "kohya's names, which are those of a UNet and its CLIP text encoders")
        return stem

    return kohya


@cache
def _ldm_blocks(architecture: str | None) -> UNetKeyMap:
    if architecture not in _LEVELS:
        raise UsageError(
            "LDM's numbering depends on the architecture, and this adapter does not tell it",
            where="--to kohya-sgm",
            expected=", ".join(_LEVELS),
            found=architecture or "unknown",
            hint="give --base, or convert to kohya",
        )
    label = "add_embedding" if architecture.startswith("sdxl") else "class_embedding"
    return UNetKeyMap(standard_structure(_LEVELS[architecture], label=label))


def _diffusers(name: ModuleName) -> str:
    # a model that is no component of a pipeline has its own names alone
    stem = name.path if name.component == MODEL else str(name)
    if (dotted_norm(stem) or dotted_layer(stem) or bare_norm(stem) or bare_layer(stem)) != name:
        raise _nameless(name, "a component of a pipeline and the path of a module; give --base")
    return stem


def _peft(name: ModuleName) -> str:
    found = bare_norm(name.path) or bare_layer(name.path)
    if found is None or found.path != name.path:
        raise _nameless(name, "the path of a module")
    return peft.PREFIX + name.path


def _nameless(name: ModuleName, expected: str) -> UsageError:
    return UsageError("this format has no name for a layer of the adapter", where=name, expected=expected)
