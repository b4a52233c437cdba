"""The quantised layers that a bake writes as plain numbers: those that change, and what must go with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from paramerge.apply.operations import Op
from paramerge.apply.steps import BakeOptions
from paramerge.checkpoints.layout import Base, WeightFile
from paramerge.models.names import COMPONENTS, ModuleName
from paramerge.storage.quantised import Quantised

DEQUANTISED = "BF16"
"""The dtype of layers that were quantised, where no other is asked for."""


@dataclass(frozen=True)
class Dequantising:
    """The layers that are written as plain numbers, and what is said of it."""

    layers: frozenset[Quantised]
    warnings: tuple[str, ...] = ()

    def layer(self, file: WeightFile, key: str) -> Quantised | None:
        """The layer whose weight has this key, if it is written as plain numbers."""
        found = file.quantised.get(key)
        return found if found in self.layers and found is not None and key == found.layer.key else None

    def drops(self, file: WeightFile, key: str) -> bool:
        """Whether the tensor is left out: a part of such a layer, or the marker of such layers."""
        found = file.quantised.get(key)
        if found is not None:
            return found in self.layers and key != found.layer.key
        return key in file.markers and any(
            layer.layer.marker == key and layer in self.layers for layer in file.quantised.values()
        )

    def layers_in(self, file: WeightFile) -> tuple[Quantised, ...]:
        """The layers of which a tensor is in this file."""
        return tuple(dict.fromkeys(layer for layer in file.quantised.values() if layer in self.layers))


def dequantising(
    base: Base,
    ops: Mapping[ModuleName, tuple[Op, ...]],
    options: BakeOptions,
    made: Collection[tuple[str, str]],
) -> Dequantising:
    """Choose the layers: those that change, all where another dtype is asked for, and all under one marker.

    Parameters
    ----------
    made:
        Component and key of tensors that a merge changes.

    Raises
    ------
    CheckpointError
        One of them cannot be read.
    """
    if not any(file.quantised for file in base.files):
        return Dequantising(frozenset())
    changed = {
        layer
        for file in base.files
        for key, layer in file.quantised.items()
        if (file.components[key], key) in made or _is_converted(file, key, options) or _is_foreign(layer)
    }
    changed |= {
        layer
        for file in base.files
        for name, target in file.reachable.items()
        if name in ops and (layer := file.quantised.get(target.key)) is not None
    }
    marked = {layer.layer.marker for layer in changed}
    beside = {
        layer
        for file in base.files
        for layer in file.quantised.values()
        if layer.layer.marker is not None and layer.layer.marker in marked
    }
    for layer in sorted(changed, key=_key) + sorted(beside - changed, key=_key):
        layer.check()
    return Dequantising(frozenset(changed | beside), tuple(_said(changed, beside - changed, options)))


def _key(layer: Quantised) -> str:
    return layer.layer.key


def _is_converted(file: WeightFile, key: str, options: BakeOptions) -> bool:
    return options.dtype != "keep" and file.components[key] in COMPONENTS


def _is_foreign(layer: Quantised) -> bool:
    return layer.scheme is not None and layer.scheme.foreign


def _said(
    changed: Collection[Quantised], beside: Collection[Quantised], options: BakeOptions
) -> Iterator[str]:
    if options.dtype != "keep" or not changed:
        return
    if any(map(_is_foreign, changed)):
        count = len(changed)
        yield f"{count} quantised tensors of a GGUF file are written as bf16: the output is safetensors"
        return
    titles = " and ".join(sorted({layer.title for layer in changed}))
    yield (
        f"{len(changed)} layers that change are stored quantised ({titles}): they are written as bf16, "
        "without their scales and marks"
    )
    if beside:
        marker = next(iter(beside)).layer.marker
        yield (
            f"{marker} marks the whole file, and its readers take no plain layers beside scaled ones: "
            f"{len(beside)} more layers are written as bf16"
        )
