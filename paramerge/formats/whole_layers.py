"""A layer is read whole or not at all.

A key of a layer that is not understood means that the layer is more than the part that was read: a magnitude
makes a DoRA of a LoRA, a bias a change of two parameters. Such a layer cannot be applied in part; all of its
keys are left over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import commonprefix

from paramerge.adapters import LayerModule, Leftover
from paramerge.adapters.registry import vague_roles
from paramerge.formats import peft
from paramerge.formats.layers import folded
from paramerge.formats.registry import boundaries, place_of
from paramerge.formats.roles import read_role
from paramerge.models.names import ModuleName, split_kind

_LONGEST_ENDING = 8
"""Words that a key may have behind its layer: ``lora_magnitude_vector.default.weight`` has three."""

_MEANINGS = {
    ".magnitude": "a magnitude under ai-toolkit's name, of a DoRA whose scale is in no file",
}
"""Meanings of endings that cannot be read."""


def whole_layers(
    modules: Mapping[ModuleName, LayerModule], leftovers: Sequence[Leftover]
) -> tuple[dict[ModuleName, LayerModule], tuple[Leftover, ...]]:
    """``modules`` without the layers that a key of ``leftovers`` is of, and the leftovers with their keys."""
    owners = _owners(modules)
    meanings: dict[str, list[str]] = {}
    strangers: dict[str, list[str]] = {}
    for key in (key for leftover in leftovers for key in leftover.keys):
        owner = None if peft.is_copy_of_base(key) else _owner(key, owners)
        if owner is not None:
            strangers.setdefault(owner, []).append(key)
            meanings.setdefault(owner, []).append(_meaning(key))
    if not strangers:
        return dict(modules), tuple(leftovers)
    kept = {name: module for name, module in modules.items() if _layer(name) not in strangers}
    lost: dict[str, list[str]] = {}
    for layer, keys in strangers.items():
        meaning = " and ".join(dict.fromkeys(meanings[layer]))
        own = [key for name, module in modules.items() if _layer(name) == layer for key in module.keys]
        reason = f"{meaning}: their layers are not understood, and nothing of them is applied"
        lost.setdefault(reason, []).extend([*keys, *own])
    named = {key for keys in lost.values() for key in keys}
    others = (Leftover(tuple(k for k in each.keys if k not in named), each.reason) for each in leftovers)
    found = (Leftover(tuple(dict.fromkeys(keys)), reason) for reason, keys in lost.items())
    return kept, (*found, *(each for each in others if each.keys))


def _layer(name: ModuleName) -> str:
    """The layer that a weight or a bias is of, in one spelling."""
    return folded(name._replace(path=split_kind(name.path)[0]))


def _owners(modules: Mapping[ModuleName, LayerModule]) -> dict[str, str]:
    """The layers by their names in one spelling, and by the text before the parts' names in their keys."""
    owners = {}
    for name, module in modules.items():
        stem = commonprefix(module.keys)  # noqa: RUF071 - of characters, not of folders
        ends = [match.start() for match in boundaries().finditer(stem)]
        owners[f"stem {stem[: ends[-1]] if ends else stem}"] = _layer(name)
    return owners | {layer: layer for layer in owners.values()}


def _owner(key: str, owners: Mapping[str, str]) -> str | None:
    """The layer that the key is of, the innermost that its dots can mean."""
    for match in reversed(list(boundaries().finditer(key))[-_LONGEST_ENDING:]):
        stem = key[: match.start()]
        place = place_of(stem)
        found = owners.get(f"stem {stem}") or (owners.get(_layer(place.name)) if place else None)
        if found is not None:
            return None if _is_of_another(key, found) else found
    return None


def _is_of_another(key: str, layer: str) -> bool:
    """Whether the key is a known part of a layer whose name only begins as this one's does."""
    role = read_role(key)
    if role is None or role.role in vague_roles():
        return False
    return _layer(role.place.name).partition(":")[2] != layer.partition(":")[2]


def _meaning(key: str) -> str:
    """The content of the key, in words; its ending where nothing is known of it."""
    known = next((text for ending, text in _MEANINGS.items() if key.endswith(ending)), None)
    ends = [match.start() for match in boundaries().finditer(key)]
    return known or peft.leftover_reason(key) or f"'{key[ends[-1] :]}'"
