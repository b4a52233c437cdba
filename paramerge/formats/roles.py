"""Keys of every family, read into the parameter they stand for and the part they play.

The layers' names are spelled as in LoRA files: kohya's and LyCORIS's underscores, diffusers' dots, PEFT's
prefix. What stands behind the name is the role: ``hada_w1_a``, ``oft_blocks``, ``diff_b``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from paramerge.adapters.family import Family, ending_pattern, without_name
from paramerge.adapters.registry import endings, families
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
    "Place",
    "Role",
    "dialects_of",
    "place_of",
    "read_role",
]

_DEFAULT = "default"
"""The name that PEFT gives to an adapter that has none."""

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
    pattern, roles = _endings(families())
    match = pattern.fullmatch(key)
    place = place_of(match["stem"]) if match else None
    if match is None or place is None:
        return None
    return Role(place, roles[match["role"].replace(f".{_DEFAULT}", "")], key)


@lru_cache(maxsize=4)
def _endings(every: tuple[Family, ...]) -> tuple[re.Pattern[str], Mapping[str, str]]:
    """A pattern for a key of any family's, and the roles of the endings in it."""
    roles = endings()
    pattern = re.compile(rf"(?P<stem>.+?)\.(?P<role>{ending_pattern(roles, _DEFAULT)})")
    return pattern, {without_name(ending): role for ending, role in roles.items()}


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
