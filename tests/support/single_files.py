"""Weights under diffusers' names laid out as a single file, by a key map; rows are moved by torch alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from paramerge.models.key_map import KeyMap, named, single_key
from paramerge.models.registry import record_of

Shapes = Mapping[str, tuple[int, ...]]


def namings(name: str, shapes: Shapes) -> list[KeyMap]:
    """The namings of single files of a model with these keys: those that have a name for each."""
    every = record_of(name).key_maps
    return [key_map for key_map in every if all(single_key(key_map, key) for key in shapes)]


def as_single_file(
    key_map: KeyMap, state: Mapping[str, torch.Tensor], shapes: Shapes | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of ``state`` under the single file's keys; ``shapes`` are those of the true tensors."""
    shapes = shapes or {key: tuple(tensor.shape) for key, tensor in state.items()}
    single: dict[str, torch.Tensor] = {}
    for key in state:
        target = single_key(key_map, key)
        assert target is not None, key
        found = named(key_map, target)
        assert found is not None
        weight = f"{key.rpartition('.')[0]}.weight"
        layer = found.layer.of_shape(shapes.get(weight, shapes[key]))
        value = torch.cat([state[part] for part in found.keys]) if len(found.keys) > 1 else state[key]
        single[target] = torch.cat(value.chunk(2)[::-1]) if layer.swapped else value
    return single


def single_shapes(key_map: KeyMap, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of the single file of a model with these."""
    meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return {key: tuple(value.shape) for key, value in as_single_file(key_map, meta).items()}
