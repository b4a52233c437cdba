"""The ways in which layers are written that are stored quantised, or are to be: plain, or as codes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from paramerge.apply.operations import Op
from paramerge.apply.steps import BakeOptions
from paramerge.checkpoints.layout import Base, WeightFile
from paramerge.checkpoints.targets import Target
from paramerge.errors import UsageError
from paramerge.files.dtypes import is_float
from paramerge.models.names import COMPONENTS, ModuleName
from paramerge.storage.encoding import Encoding
from paramerge.storage.quantised import Quantised
from paramerge.storage.written import QUANTISERS
from paramerge.wording import option

DEQUANTISED = "BF16"
"""The dtype of layers that were quantised, where no other is asked for."""

_BLOCK = re.compile(r"(^|\.|_)(blocks?|layers?|h)\.\d+\.")
"""A layer within a numbered block: the first and last layers of a model are left as they are."""


@dataclass(frozen=True)
class StoragePlan:
    """Layers that are written in another way than they are stored.

    Attributes
    ----------
    plain:
        Quantised layers that are written as plain numbers.
    encoded:
        By file and key, the codes and scales that a weight is written as.
    warnings:
        Sentences on it for the user.
    """

    plain: frozenset[Quantised] = frozenset()
    encoded: Mapping[tuple[int, str], Encoding] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def layer(self, file: WeightFile, key: str) -> Quantised | None:
        """The quantised layer whose weight has this key, if its values are needed."""
        found = file.quantised.get(key)
        if found is None or key != found.layer.key:
            return None
        return found if found in self.plain or self.encoding(file, key) is not None else None

    def encoding(self, file: WeightFile, key: str) -> Encoding | None:
        """The codes and scales that the weight is written as; None where it is no such."""
        return self.encoded.get((id(file), key))

    def drops(self, file: WeightFile, key: str) -> bool:
        """Whether the tensor is left out: a part of a layer that is written otherwise, or their marker."""
        found = file.quantised.get(key)
        if found is None:
            return key in file.markers and any(
                layer.layer.marker == key and layer in self.plain for layer in file.quantised.values()
            )
        if key == found.layer.key:
            return False
        return found in self.plain or any(
            key in {part.key for part in encoding.parts}
            for (_, weight), encoding in self.encoded.items()
            if weight == found.layer.key
        )

    def layers_in(self, file: WeightFile) -> tuple[Quantised, ...]:
        """The layers that are plain then, of which a tensor is in this file."""
        return tuple(dict.fromkeys(layer for layer in file.quantised.values() if layer in self.plain))


def plan_storage(
    base: Base,
    ops: Mapping[ModuleName, tuple[Op, ...]],
    options: BakeOptions,
    made: Collection[tuple[str, str]],
) -> StoragePlan:
    """Choose the layers: those that change, all where another dtype is asked for, and all under one marker.

    Parameters
    ----------
    made:
        Component and key of tensors that a merge changes.

    Raises
    ------
    CheckpointError
        One of them cannot be read, or not be written in the way that is asked for.
    UsageError
        There is nothing to quantise, or to requantise.
    """
    if options.quantise is not None:
        return _quantised(base, options.quantise)
    if not any(file.quantised for file in base.files):
        if options.requantise:
            raise _nothing(base, "requantise", "quantised layers")
        return StoragePlan()
    changed = _changed(base, ops, options, made)
    for layer in sorted(changed, key=_key):
        layer.check()
    if options.requantise:
        return _requantised(base, changed)
    marked = {layer.layer.marker for layer in changed}
    beside = {
        layer
        for file in base.files
        for layer in file.quantised.values()
        if layer.layer.marker is not None and layer.layer.marker in marked
    } - changed
    for layer in sorted(beside, key=_key):
        layer.check()
    return StoragePlan(frozenset(changed | beside), warnings=tuple(_said(changed, beside, options)))


def _changed(
    base: Base,
    ops: Mapping[ModuleName, tuple[Op, ...]],
    options: BakeOptions,
    made: Collection[tuple[str, str]],
) -> set[Quantised]:
    changed = {
        layer
        for file in base.files
        for key, layer in file.quantised.items()
        if (file.components[key], key) in made or _is_converted(file, key, options) or _is_foreign(layer)
    }
    return changed | {
        layer
        for file in base.files
        for name, target in file.reachable.items()
        if name in ops and (layer := file.quantised.get(target.key)) is not None
    }


def _requantised(base: Base, changed: Collection[Quantised]) -> StoragePlan:
    encoded = {
        (id(file), layer.layer.key): layer.encoding()
        for file in base.files
        for layer in dict.fromkeys(file.quantised.values())
        if layer in changed and layer.layer.key in file.header.tensors
    }
    return StoragePlan(encoded=encoded)


def _quantised(base: Base, name: str) -> StoragePlan:
    if base.is_folder:
        raise UsageError(
            "the weights of a folder cannot be quantised",
            where=option("quantise"),
            expected="a base that is a file, of a model or a whole checkpoint",
            found=base.path,
            hint=f"leave {option('quantise')} away, and quantise with the library that is to load the folder",
        )
    scheme = QUANTISERS[name]
    encoded = {}
    for file in base.files:
        for module, target in file.targets.items():
            shape = _matrix_of(file, target)
            if shape is None or not _is_in_block(module):
                continue
            if not shape[0] % scheme.multiple and not shape[1] % scheme.multiple:
                encoded[id(file), target.key] = scheme.encode(target.key, shape)
    if not encoded:
        raise _nothing(base, "quantise", f"Linear layers in numbered blocks that {name} can hold")
    layers = {layer for file in base.files for layer in file.quantised.values()}
    for layer in sorted(layers, key=_key):
        layer.check()
    said = f"{len(encoded)} tensors are written as {name}; biases, norms and layers outside of blocks are not"
    return StoragePlan(frozenset(layers), encoded, (said,))


def _matrix_of(file: WeightFile, target: Target) -> tuple[int, int] | None:
    """The shape of the tensor of a Linear layer of a denoiser or a language model; None for others."""
    component = file.components[target.key]
    layer = file.quantised.get(target.key)
    info = file.header.tensors[target.key]
    shape = info.shape if layer is None else layer.shape
    plain = layer is not None or is_float(info.dtype)
    if component not in COMPONENTS or component.startswith("text_encoder") or component == "vae":
        return None
    if not plain or target.transposed or not target.key.endswith(".weight") or shape is None:
        return None
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _is_in_block(module: ModuleName) -> bool:
    return _BLOCK.search(module.path) is not None


def _nothing(base: Base, name: str, expected: str) -> UsageError:
    return UsageError(
        f"there is nothing to {name}",
        where=option(name),
        expected=f"a base with {expected}",
        found=base.path,
    )


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
