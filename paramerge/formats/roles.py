"""Keys of every family, each read as a parameter and a role.

The layers' names are spelled as in LoRA files: kohya's and LyCORIS's underscores, diffusers' dots, PEFT's
prefix. The ending behind the name is the role: ``hada_w1_a``, ``oft_blocks``, ``diff_b``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from paramerge.adapters.endings import Endings, without_name
from paramerge.adapters.family import Family
from paramerge.adapters.registry import endings, families
from paramerge.files.header import Header
from paramerge.formats import peft
from paramerge.formats.comfyui_files import COMFYUI
from paramerge.formats.dialect import Dialect, Place, Role
from paramerge.formats.diffusers import DIFFUSERS
from paramerge.formats.registry import dialect_of, place_of

_OF_LORA = frozenset({"up", "down", "mid"})


def read_role(key: str) -> Role | None:
    """Understand one key; None if it names no known parameter or no part of a family."""
    dialect = dialect_of(key)
    cut = _cut(key, dialect)
    place = place_of(cut[0]) if cut else None
    return Role(place, cut[1], key) if cut and place else None


def part_of(key: str) -> str | None:
    """The role that the ending of a key says, whatever its stem names."""
    cut = _cut(key, dialect_of(key))
    return cut[1] if cut else None


def common_key(key: str) -> str:
    """A key with the ending that its role has in most dialects, where its own has endings of its own.

    Endings of a spelling of another dialect are no evidence of a family: a checkpoint has norms' scales, too.
    """
    dialect = dialect_of(key)
    own = dialect.separator != "." or (dialect.cut is not None and dialect.variant_of is None)
    cut = _cut(key, dialect) if own else None
    return f"{cut[0]}.{_known(families()).written.get(cut[1], cut[1])}" if cut else key


def read_roles(header: Header, *, configured: bool = False, whole: Collection[str] = ()) -> list[Role]:
    """Understand the keys of a file, as far as they are known.

    Parameters
    ----------
    configured:
        Whether PEFT's configuration is beside it: its names are then PEFT's, whatever their prefix.
    whole:
        The modules that it says were saved whole.
    """
    indexed: dict[str, Mapping[str, Place]] = {}
    roles = []
    for key in header.tensors:
        dialect = dialect_of(key)
        if dialect.indexed is not None:
            if dialect.key not in indexed:
                indexed[dialect.key] = dialect.indexed(header)
            cut = _cut(key, dialect)
            place = indexed[dialect.key].get(cut[0]) if cut else None
            role = Role(place, cut[1], key) if cut and place else None
        elif configured and (saved := peft.saved_whole(key, whole)) is not None:
            role = _whole(key, *saved)
        elif configured and dialect in (DIFFUSERS, COMFYUI):
            found = read_role(peft.PREFIX + key)
            role = found and found._replace(key=key)
        else:
            role = read_role(key)
        if role is not None and _is_beside_up(key, dialect, header):
            roles.append(role)
    return roles


def _whole(key: str, path: str, kind: str) -> Role | None:
    """The role of a weight or a bias that takes the place of the base's."""
    place = place_of(peft.PREFIX + path)
    return place and Role(place, "whole" if kind == "weight" else "whole_b", key)


def _is_beside_up(key: str, dialect: Dialect, header: Header) -> bool:
    """False where an ending is read beside the dialect's own ``up`` alone, which is not there."""
    stem, _, ending = key.rpartition(".")
    return ending not in dialect.also_read or dialect.written(stem, "up") in header.tensors


def _cut(key: str, dialect: Dialect) -> tuple[str, str] | None:
    """The stem of a key and the role of its ending, where the ending is known."""
    if dialect.cut is not None:
        return dialect.cut(key)
    known = _known(families())
    if dialect.separator != ".":
        stem, _, ending = key.rpartition(dialect.separator)
        role = dialect.roles.get(ending) or (ending if ending in known.written else None)
        return (stem, role) if stem and role else None
    found = known.endings.find(key)
    if not found:
        stem, _, ending = key.rpartition(".")
        return (stem, dialect.also_read[ending]) if stem and ending in dialect.also_read else None
    stem, _, role = found[0]
    if role == "alpha" and (factor := _cut(stem, dialect)) and factor[1] in _OF_LORA:
        return factor[0], role  # diffusers' converters hang it on a layer, or on the whole key of a factor
    return stem, role


class _Known(NamedTuple):
    """The roles of all families' tensors by the endings of their keys, and how each is written in most."""

    endings: Endings[str]
    written: Mapping[str, str]


@lru_cache(maxsize=4)
def _known(every: tuple[Family, ...]) -> _Known:
    roles = endings()
    written = {role: without_name(ending) for ending, role in reversed(list(roles.items()))}
    return _Known(Endings(roles.items()), written)


def dialects_of(roles: Iterable[Role]) -> dict[str, list[str]]:
    """The dialects that keys are spelled in, each with its keys."""
    spoken: dict[str, list[str]] = {}
    for role in roles:
        spoken.setdefault(role.place.dialect, []).append(role.key)
    return spoken
