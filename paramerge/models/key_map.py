"""Two names for each of a model's layers: that of its single files, and that of diffusers.

Single files often stack projections that read the same input into one matrix, whose parts are rows, and a
layer may have its two halves the other way round. Where only words differ, :class:`LayerTable` is all that an
architecture needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol

Rows = Literal["equal", "square", "grouped"] | tuple[int, ...]
"""Rows of each part of a stacked matrix: as many for all; as many as columns for all but the last, which has
the rest; as many as columns for the first, and as many for all others (keys and values that several queries
share); or these numbers."""

Swap = bool | Literal["pair"]
"""Whether a layer's halves are the other way round in diffusers. ``pair``: only where it has twice as many
rows as columns, so that it makes one shift and one scale, as in the last block of Stable Diffusion 3."""

WEIGHT = "weight"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the single file in diffusers: one path, several stacked by rows, or one swapped."""

    parts: tuple[str, ...]
    rows: Rows = "equal"
    """The rows of the parts, where there are several."""
    swapped: Swap = False
    """Whether the first half of the rows is diffusers' second half, and the reverse."""
    ending: str = WEIGHT
    """The ending of the single file's key for what is ``.weight`` in diffusers: ``scale`` of some norms."""

    @property
    def divided(self) -> bool:
        """Whether more than the name differs, or may differ."""
        return len(self.parts) > 1 or bool(self.swapped)

    def of_shape(self, shape: Sequence[int]) -> Layer:
        """This layer, of which a weight has the shape (rows, columns): whether it is swapped is decided."""
        if self.swapped != "pair":
            return self
        return replace(self, swapped=len(shape) == 2 and shape[0] == 2 * shape[1])


def scale(part: str) -> Layer:
    """A norm whose weight is called ``scale`` in single files, and ``part`` in diffusers."""
    return Layer((part,), ending="scale")


def triple(stem: str, names: str = "to_{}", rows: Rows = "equal") -> Layer:
    """The stacked q, k and v of an attention ``stem``."""
    return Layer(tuple(f"{stem}.{names.format(letter)}" for letter in "qkv"), rows)


class KeyMap(Protocol):
    """The layers of an architecture by both names. Paths have no prefix and no ``.weight``."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """The endings of keys behind a layer in the single file, with those of diffusers."""

    def layer(self, path: str) -> Layer | None:
        """The layer of diffusers for the single file's ``path``; None if there is no such."""

    def path(self, part: str) -> str | None:
        """The single file's layer for diffusers' ``part``, whole or in part; None if there is no such."""

    def dotted(self, name: str) -> str | None:
        """The path, in either naming, of a layer whose dots are underscores; None if there is no such."""


@dataclass(frozen=True)
class Blocks:
    """Numbered blocks: the text before the number in each naming, and the layers behind it."""

    single: str
    diffusers: str
    layers: Mapping[str, str | Layer]
    """The single file's layer to diffusers', or to its parts."""

    def without(self, *layers: str) -> Blocks:
        """The same blocks with some layers left out."""
        return replace(self, layers={path: each for path, each in self.layers.items() if path not in layers})


_NUMBERED = re.compile(r"(?P<blocks>[\w.]+?)\.(?P<number>\d+)\.(?P<layer>.+)")

_NUMBER_WITHIN = re.compile(r"_(\d+)_", re.ASCII)


class LayerTable:
    """A key map that is a table: layers outside of blocks, and the layers of numbered blocks.

    Parameters
    ----------
    outside:
        The single file's layer to diffusers', or to its parts.
    blocks:
        The kinds of blocks that there are.
    kinds:
        As :attr:`KeyMap.kinds`.
    """

    def __init__(
        self,
        outside: Mapping[str, str | Layer],
        blocks: Sequence[Blocks] = (),
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        every = [_layer(found) for each in (outside, *(b.layers for b in blocks)) for found in each.values()]
        endings = {layer.ending: WEIGHT for layer in every}
        self.kinds: Mapping[str, str] = kinds or {WEIGHT: WEIGHT, "bias": "bias", **endings}
        self._outside = {path: _layer(found) for path, found in outside.items()}
        self._blocks = {
            blocks.single: (blocks.diffusers, {path: _layer(found) for path, found in blocks.layers.items()})
            for blocks in blocks
        }
        self._back = {part: path for path, layer in self._outside.items() for part in layer.parts}
        self._blocks_back = {
            diffusers: (single, {part: path for path, layer in layers.items() for part in layer.parts})
            for single, (diffusers, layers) in self._blocks.items()
        }
        self._dotted = {path.replace(".", "_"): path for path in (*self._back, *self._outside)}
        self._blocks_dotted: dict[str, dict[str, tuple[str, str]]] = {}
        for ways in (self._blocks_back, self._blocks):
            for name, (_, layers) in ways.items():
                known = self._blocks_dotted.setdefault(name.replace(".", "_"), {})
                known |= {path.replace(".", "_"): (name, path) for path in layers}

    def layer(self, path: str) -> Layer | None:
        """The layer of diffusers (:meth:`KeyMap.layer`)."""
        if path in self._outside:
            return self._outside[path]
        match = _NUMBERED.fullmatch(path)
        diffusers, layers = self._blocks.get(match["blocks"], ("", {})) if match else ("", {})
        if match is None or match["layer"] not in layers:
            return None
        layer = layers[match["layer"]]
        parts = tuple(f"{diffusers}.{match['number']}.{part}" for part in layer.parts)
        return replace(layer, parts=parts)

    def path(self, part: str) -> str | None:
        """The single file's layer (:meth:`KeyMap.path`)."""
        if part in self._back:
            return self._back[part]
        match = _NUMBERED.fullmatch(part)
        single, paths = self._blocks_back.get(match["blocks"], ("", {})) if match else ("", {})
        if match is None or match["layer"] not in paths:
            return None
        return f"{single}.{match['number']}.{paths[match['layer']]}"

    def dotted(self, name: str) -> str | None:
        """The path of a layer with underscores (:meth:`KeyMap.dotted`)."""
        if name in self._dotted:
            return self._dotted[name]
        match = _NUMBER_WITHIN.search(name, 1)
        if match is None:
            return None
        found = self._blocks_dotted.get(name[: match.start()], {}).get(name[match.end() :])
        return f"{found[0]}.{match[1]}.{found[1]}" if found else None


def _layer(found: str | Layer) -> Layer:
    return Layer((found,)) if isinstance(found, str) else found


class Named(NamedTuple):
    """A tensor of a single file in diffusers.

    Attributes
    ----------
    layer:
        Its layer, by diffusers' paths.
    keys:
        Its keys in diffusers, one for each part.
    """

    layer: Layer
    keys: tuple[str, ...]


def named(key_map: KeyMap, key: str) -> Named | None:
    """The tensor ``key`` of a single file, without prefix, in diffusers; None if there is no such.

    The key is a layer's with an ending, or the path of a parameter that has none.
    """
    path, _, kind = key.rpartition(".")
    layer = key_map.layer(path) if kind in key_map.kinds else None
    if layer is not None:
        return Named(layer, tuple(f"{part}.{key_map.kinds[kind]}" for part in layer.parts))
    layer = key_map.layer(key)
    return Named(layer, layer.parts) if layer is not None else None


def single_key(key_map: KeyMap, key: str) -> str | None:
    """The single file's key of the tensor that has diffusers' ``key``, or of the stack that it is part of."""
    stem, _, kind = key.rpartition(".")
    path = key_map.path(stem) if kind in (WEIGHT, "bias") else None
    layer = key_map.layer(path) if path is not None else None
    if layer is not None:
        return f"{path}.{layer.ending if kind == WEIGHT else kind}"
    return key_map.path(key)


def is_divided(key_map: KeyMap, path: str) -> bool:
    """Whether the layouts differ in more than the name of this layer, of either naming."""
    layer = key_map.layer(path) or key_map.layer(key_map.path(path) or "")
    return layer is not None and layer.divided


def runs_of(rows: Rows, parts: int, size: int, columns: int) -> tuple[tuple[int, int], ...] | None:
    """The rows ``[start, stop)`` of each of the ``parts`` of a matrix (size, columns).

    None where the matrix cannot be divided so.
    """
    if rows == "square":
        sizes = [columns] * (parts - 1)
        sizes.append(size - sum(sizes))
    elif rows == "grouped":
        sizes = [columns, *[(size - columns) // (parts - 1)] * (parts - 1)]
    elif rows == "equal":
        sizes = [size // parts] * parts
    else:
        sizes = list(rows)
    if len(sizes) != parts or sum(sizes) != size or min(sizes) < 1:
        return None
    ends = list(accumulate(sizes))
    return tuple((end - own, end) for end, own in zip(ends, sizes, strict=True))
