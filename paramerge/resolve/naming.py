"""From the names that an adapter has for its layers to those that the base has.

For Stable Diffusion both have the same names already. For other models the names are the checkpoint's own,
but adapters leave out the component (PEFT), write underscores for dots (kohya), or use the single file's
names for a diffusers folder and the reverse, where the architecture's record maps one to the other. The base
decides: a name is changed only where exactly one of its layers can be meant, and a name that is not found
stays as it is, to be refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from paramerge.adapters import Adapter, LayerModule, LoraModule
from paramerge.checkpoints.layout import Base
from paramerge.checkpoints.targets import Target
from paramerge.errors import AdapterError, ShapeError, UnmatchedError
from paramerge.models.key_map import KeyMap, Layer, is_divided
from paramerge.models.names import MODEL, ModuleName, split_kind
from paramerge.models.registry import record_of
from paramerge.wording import option

Targets = Mapping[ModuleName, Target]

_SAME = 2.0**-7
"""The relative distance of one change stored twice, in 8 digits of BF16 at the least."""


def in_names_of(
    base: Base,
    targets: Targets,
    adapter: Adapter,
    selected: Callable[[ModuleName], bool] = lambda _: True,
) -> Adapter:
    """``adapter`` with the names that ``base`` has for its layers, norms and biases.

    A module for projections that the base has one by one is divided into its rows, where its family changes
    each row independently. ``selected`` says which of the base's layers may be meant, where several could be.

    Raises
    ------
    UnmatchedError
        Layers of several of the base's models could be meant.
    AdapterError
        Two layers of the adapter are the same layer of the base.
    ShapeError
        A layer for stacked projections does not have their rows.
    """
    if all(name in targets and not targets[name].stack for name in adapter.modules):
        return adapter
    names = _BaseNames(targets, record_of(base.architecture).key_maps)
    modules: dict[ModuleName, LayerModule] = {}
    for module in adapter.modules.values():
        for renamed in _placed(module, names.find(module, adapter, selected), targets, adapter):
            known = modules.get(renamed.name)
            if known is not None and _is_same(known, renamed):
                continue  # some trainers save a stack and its parts, or a layer under two names
            if known is not None:
                raise AdapterError(
                    "two layers of this adapter are the same layer of the base",
                    where=f"{adapter.path}: {renamed.name}",
                    found=f"{known.keys[0]} and {renamed.keys[0]}",
                    hint="the file was probably joined from two: take one of its parts",
                )
            modules[renamed.name] = renamed
    return replace(adapter, modules=modules)


def _is_same(one: LayerModule, other: LayerModule) -> bool:
    """Whether two modules are LoRAs of the same change, to the rounding of their dtypes."""
    if not isinstance(one, LoraModule) or not isinstance(other, LoraModule):
        return False
    if (one.out_features, one.in_features) != (other.out_features, other.in_features):
        return False
    first, second = one.change().whole(), other.change().whole()
    return bool(np.linalg.norm(first - second) <= _SAME * np.linalg.norm(first))


def homes_of(name: ModuleName, components: Iterable[str]) -> list[str]:
    """The base's ``components`` that an adapter may mean by the component of ``name``."""
    present = list(components)
    if name.component == MODEL:
        return present
    if name.component in present:
        return [name.component]
    if present == [MODEL]:
        return [MODEL]
    others: tuple[str, ...] = ()
    if name.component in ("unet", "transformer"):
        # kohya and ComfyUI say "unet" and "diffusion_model" for any model that removes the noise
        others = ("unet", "transformer", "prior")
    elif name.component == "text_encoder_3" and "block" in name.path:
        # kohya numbers T5 as the third encoder, also where there are only two (FLUX)
        others = ("text_encoder_2", "text_encoder")
    return [other for other in others if other in present]


@dataclass(frozen=True, slots=True)
class _Place:
    """The meaning of a name in the base.

    Attributes
    ----------
    parts:
        The base's layers, stacked along the rows in this order.
    whole:
        The one target that is all of it, for families that cannot be divided; None without.
    swapped:
        Whether the halves of the rows are the other way round in the base.
    """

    parts: tuple[ModuleName, ...]
    whole: ModuleName | None
    swapped: bool = False


_Meaning = tuple[tuple[ModuleName, ...], bool]
"""The parts of a place, and whether it is swapped."""


def _placed(
    module: LayerModule, place: _Place | None, targets: Targets, adapter: Adapter
) -> Iterator[LayerModule]:
    """The module under the base's name: several where it is divided, itself if it is not there."""
    if place is None:
        yield module
        return
    if place.whole is not None and len(place.parts) == 1:
        yield module.renamed(place.whole)
        return
    sizes = [targets[name].shape[0] for name in place.parts]
    parts = [module.part(name, runs) for name, runs in zip(place.parts, _runs(place, sizes), strict=True)]
    divided = [part for part in parts if part is not None]
    if not divided:
        yield module if place.whole is None else module.renamed(place.whole)
        return
    if module.out_features != sum(sizes):
        raise ShapeError(
            "a layer of this adapter does not have the rows of the projections that it is meant for",
            where=f"{adapter.path}: {module.name}",
            expected=", ".join(f"{name.path}: {size}" for name, size in zip(place.parts, sizes, strict=True)),
            found=f"{module.out_features} rows",
        )
    yield from divided


def _runs(place: _Place, sizes: Sequence[int]) -> list[tuple[tuple[int, int], ...]]:
    """The rows of each part, of ``sizes``, in a stacked or swapped tensor."""
    if place.swapped:
        half = sizes[0] // 2
        return [((half, 2 * half), (0, half))]
    ends = list(accumulate(sizes))
    return [((end - size, end),) for size, end in zip(sizes, ends, strict=True)]


class _BaseNames:
    """The base's layers by all the names that adapters may have for them, component by component."""

    def __init__(self, targets: Targets, key_maps: Sequence[KeyMap]) -> None:
        self._places: dict[str, dict[str, _Place]] = {}
        spelled: dict[str, dict[str, dict[_Meaning, _Place]]] = {}
        for name, target in targets.items():
            places = self._places.setdefault(name.component, {})
            parts = _parts_of(name, key_maps) if target.stack else (name,)
            places[name.path] = _Place(parts, name)
        for key_map in key_maps:
            for name in targets:
                self._add_other_names(name, targets, key_map)
        for component, places in self._places.items():
            for path, place in places.items():
                meant = spelled.setdefault(component, {}).setdefault(_underscored(path), {})
                known = meant.setdefault((place.parts, place.swapped), place)
                if known.whole is None:
                    meant[place.parts, place.swapped] = place
        for component, folded in spelled.items():
            for path, meant in folded.items():
                if len(meant) == 1:  # underscores that could stand for two layers name neither
                    self._places[component].setdefault(path, *meant.values())

    def _add_other_names(self, name: ModuleName, targets: Targets, key_map: KeyMap) -> None:
        """The single file's names for a folder's layers, and diffusers' for the file's swapped one."""
        places = self._places[name.component]
        stem, kind = split_kind(name.path)
        weight = targets.get(name._replace(path=stem), targets[name])
        layer = _of_shape(key_map.layer(stem), weight)
        if layer is not None and layer.swapped:
            places.setdefault(layer.parts[0] + kind, _Place((name,), None, swapped=True))
        path = key_map.path(stem)
        layer = _of_shape(key_map.layer(path) if path else None, weight)
        if path is None or layer is None:
            return
        parts = tuple(ModuleName(name.component, part + kind) for part in layer.parts)
        if all(part in targets for part in parts):
            alone = len(parts) == 1 and not layer.swapped
            swapped = bool(layer.swapped)
            places.setdefault(path + kind, _Place(parts, parts[0] if alone else None, swapped))

    def find(
        self, module: LayerModule, adapter: Adapter, selected: Callable[[ModuleName], bool]
    ) -> _Place | None:
        """Find the meaning of the module's name.

        Raises
        ------
        UnmatchedError
            Layers of several components.
        """
        places = (self._place(component, module.name) for component in homes_of(module.name, self._places))
        found = [place for place in places if place is not None]
        if len(found) > 1:
            found = [place for place in found if all(map(selected, place.parts))] or found
        if len(found) > 1:
            owners = [place.parts[0].component for place in found]
            raise UnmatchedError(
                "this adapter does not say which of the base's models it is for",
                where=f"{adapter.path}: {module.keys[0]}",
                expected="a layer that one of them has",
                found=f"{module.name.path} in {' and in '.join(owners)}",
                hint=f"choose one: {option('only', owners[0])}",
            )
        return found[0] if found else None

    def _place(self, component: str, name: ModuleName) -> _Place | None:
        places = (self._places[component].get(path) for path in _spellings(name))
        return next((place for place in places if place is not None), None)


def stacked_elsewhere(base: Base, targets: Targets, names: Iterable[ModuleName]) -> bool:
    """Whether one of ``names`` is a layer that the base's other layout stacks, divides or swaps."""
    both: set[str] = set()
    for key_map in record_of(base.architecture).key_maps:
        for target in targets:
            stem = split_kind(target.path)[0]
            if is_divided(key_map, stem):
                single = stem if key_map.layer(stem) else key_map.path(stem) or stem
                layer = key_map.layer(single)
                both |= {_underscored(path) for path in (single, *(layer.parts if layer else ()))}
    return any(_underscored(split_kind(name.path)[0]) in both for name in names)


def _of_shape(layer: Layer | None, weight: Target) -> Layer | None:
    return layer and layer.of_shape(weight.shape)


def _parts_of(stack: ModuleName, key_maps: Sequence[KeyMap]) -> tuple[ModuleName, ...]:
    stem, kind = split_kind(stack.path)
    layer = next((layer for key_map in key_maps if (layer := key_map.layer(stem))), None)
    return tuple(ModuleName(stack.component, part + kind) for part in layer.parts) if layer else (stack,)


def _underscored(path: str) -> str:
    """A path as kohya spells it; the ending of a norm's or a bias's name is no part of the spelling."""
    stem, kind = split_kind(path)
    return stem.replace(".", "_") + kind


def _spellings(name: ModuleName) -> Iterator[str]:
    """A path, and others that the same layer may have in a base.

    A CLIP text encoder on its own has no ``text_model.``; a parameter without an ending is no weight of a
    layer; a language model's layers are deeper inside a model that also sees, and since transformers 4.52
    at other places of it.
    """
    yield name.path
    if name.path.startswith("text_model."):
        yield name.path.removeprefix("text_model.")
    yield name.path.removesuffix(".weight")
    for start, rest in _split_prefixes(name.path):
        for other in _PLACES_OF_LAYERS[start]:
            yield other + rest


_LANGUAGE = ("language_model.model.", "model.language_model.", "language_model.", "model.", "")
_SEEING = ("visual", "vision_tower", "multi_modal_projector")
_PLACES_OF_LAYERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_LANGUAGE, _LANGUAGE),
    "language_model.lm_head": ("lm_head",),
    "lm_head": ("language_model.lm_head",),
    **{f"{part}.": (f"model.{part}.",) for part in _SEEING},
    **{f"model.{part}.": (f"{part}.",) for part in _SEEING},
}
"""Prefixes of a language model's paths, each with those that other versions of transformers, or a model that
is that language model alone, have for it."""

_LANGUAGE_LAYER = re.compile(r"(layers[._]\d+[._]|embed_tokens|norm\b)")


def _split_prefixes(path: str) -> Iterator[tuple[str, str]]:
    """The prefixes of :data:`_PLACES_OF_LAYERS` that a path has, each with the rest of it."""
    for start in _PLACES_OF_LAYERS:
        rest = path.removeprefix(start)
        if path.startswith(start) and (start not in _LANGUAGE or _LANGUAGE_LAYER.match(rest)):
            yield start, rest
