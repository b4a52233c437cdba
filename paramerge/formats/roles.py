"""Keys of every family, read into the parameter they stand for and the part they play.

The layers' names are spelled as in LoRA files: kohya's and LyCORIS's underscores, diffusers' dots, PEFT's
prefix. What stands behind the name is the role: ``hada_w1_a``, ``oft_blocks``, ``diff_b``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from paramerge.adapters.group import NUMBER
from paramerge.formats import diffusers, peft
from paramerge.formats.layers import (
    bare_layer,
    bare_norm,
    dotted_layer,
    dotted_norm,
    underscored_layer,
    underscored_norm,
    without_dots,
)
from paramerge.models.names import ModuleName

__all__ = [
    "AXES",
    "Place",
    "Role",
    "dialects_of",
    "place_of",
    "read_role",
]

_ROLES = {
    "lora_up.weight": "up",
    "lora_down.weight": "down",
    "lora_mid.weight": "mid",
    "lora.up.weight": "up",
    "lora.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_B.weight": "up",
    "lora_A.weight": "down",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "dora_scale": "dora_scale",
    "alpha": "alpha",
    **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{name: name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_t1")},
    **{name: name for name in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    **{name: name for name in ("oft_blocks", "rescale", "on_input", "diff", "diff_b", "w_norm", "b_norm")},
    **{f"{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")},
    "oft_R.weight": "oft_R",
    "boft_R": "boft_R",
    "boft_s": "boft_s",
    "ia3_l": "ia3_l",
    "delta": "delta",
    "weight": "weight",
}
_MATRIX, _FACTOR, _CORE = range(2, 3), range(2, 6), range(3, 6)
AXES: Mapping[str, range] = {
    **dict.fromkeys(("up", "down", "a1", "a2", "b1", "b2", "lokr_w2", "lokr_w1_b", "lokr_w2_b"), _FACTOR),
    **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), _FACTOR),
    **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w2_a", "oft_R"), _MATRIX),
    **dict.fromkeys(("mid", "bm", "hada_t1", "hada_t2", "lokr_t1", "lokr_t2"), _CORE),
    **dict.fromkeys(("alpha", "on_input"), NUMBER),
    **dict.fromkeys(("diff_b", "w_norm", "b_norm", "delta"), range(1, 2)),
    "oft_blocks": range(3, 5),
    "boft_R": range(4, 5),
}
"""How many axes the tensor of a role can have, where something is said of it."""

_KEY = re.compile(
    rf"(?P<stem>.+?)\.(?P<role>{'|'.join(map(re.escape, sorted(_ROLES, key=len, reverse=True)))})"
)
_ADAPTER_NAME = re.compile(
    r"(\.(?:lora_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+|oft_R|boft_[Rs]|ia3_l))\.default(?=\.|$)"
)
_OLD_ATTENTION = re.compile(
    r"(?P<path>.+?)(?:\.processor)?\.to_(?P<layer>q|k|v|out)_lora\.(?P<side>up|down)\.weight"
)


class Place(NamedTuple):
    """What a key's stem names, and how: a layer, or (``layer`` False) a norm or an embedding."""

    name: ModuleName
    layer: bool
    dialect: str


class Role(NamedTuple):
    """A key, understood."""

    place: Place
    role: str
    key: str


def read_role(key: str) -> Role | None:
    """Understand one key; None if it names no known parameter or no part of a family."""
    if match := _OLD_ATTENTION.fullmatch(key):
        place = _dotted(diffusers.modern_path(match["path"], match["layer"]), "diffusers-old")
        return Role(place, match["side"], key) if place else None
    match = _KEY.fullmatch(_ADAPTER_NAME.sub(r"\1", key))
    place = place_of(match["stem"]) if match else None
    if match is None or place is None:
        return None
    return Role(place, _ROLES[match["role"]], key)


def dialects_of(roles: Iterable[Role]) -> dict[str, list[str]]:
    """The dialects that keys are spelled in, each with its keys."""
    spoken: dict[str, list[str]] = {}
    for role in roles:
        spoken.setdefault(role.place.dialect, []).append(role.key)
    return spoken


def place_of(stem: str) -> Place | None:
    """What the stem of a key, before its role, names; None for what can be no module's path."""
    stem = without_dots(stem)
    if "." not in stem:
        # norms first: what is neither's may still be a layer of another model
        if spelled := underscored_norm(stem):
            return Place(spelled.name, False, "kohya-sgm" if spelled.ldm else "kohya")
        if spelled := underscored_layer(stem):
            return Place(spelled.name, True, "kohya-sgm" if spelled.ldm else "kohya")
    if stem.startswith(peft.PREFIX):
        return _dotted(stem.removeprefix(peft.PREFIX), "peft")
    return _dotted(stem, "diffusers")


def _dotted(path: str, dialect: str) -> Place | None:
    path = path.replace(".processor.", ".")
    if norm := dotted_norm(path) or bare_norm(path):
        return Place(norm, False, dialect)
    layer = dotted_layer(path) or bare_layer(path)
    return Place(layer, True, dialect) if layer else None
