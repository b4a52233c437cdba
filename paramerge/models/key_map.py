"""Two names for each of a model's layers: that of its single files, and that of diffusers.

Single files often stack projections that read the same input into one matrix, whose parts are rows, and a
layer may have its two halves the other way round. Where only words differ, :class:`LayerTable` is all that an
architecture needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

Rows = Literal["equal", "square"] | tuple[int, ...]
"""Rows of each part of a stacked matrix: as many for all; as many as columns for all but the last, which has
the rest; or these numbers."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the single file in diffusers: one path, several stacked by rows, or one swapped."""

    parts: tuple[str, ...]
    rows: Rows = "equal"
    """The rows of the parts, where there are several."""
    swapped: bool = False
    """Whether the first half of the rows is diffusers' second half, and the reverse."""

    @property
    def divided(self) -> bool:
        """Whether more than the name differs."""
        return len(self.parts) > 1 or self.swapped


class KeyMap(Protocol):
    """The layers of an architecture by both names. Paths have no prefix and no ``.weight``."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """The endings of keys behind a layer in the single file, with those of diffusers."""

    def layer(self, path: str) -> Layer | None:
        """The layer of diffusers for the single file's ``path``; None if there is no such."""

    def path(self, part: str) -> str | None:
        """The single file's layer for diffusers' ``part``, whole or in part; None if there is no such."""


@dataclass(frozen=True)
class Blocks:
    """Numbered blocks: the text before the number in each naming, and the layers behind it."""

    single: str
    diffusers: str
    layers: Mapping[str, str | Layer]
    """The single file's layer to diffusers', or to its parts."""


_NUMBERED = re.compile(r"(?P<blocks>[\w.]+?)\.(?P<number>\d+)\.(?P<layer>.+)")


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
        self.kinds: Mapping[str, str] = kinds or {"weight": "weight", "bias": "bias"}
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
        return Layer(parts, layer.rows, layer.swapped)

    def path(self, part: str) -> str | None:
        """The single file's layer (:meth:`KeyMap.path`)."""
        if part in self._back:
            return self._back[part]
        match = _NUMBERED.fullmatch(part)
        single, paths = self._blocks_back.get(match["blocks"], ("", {})) if match else ("", {})
        if match is None or match["layer"] not in paths:
            return None
        return f"{single}.{match['number']}.{paths[match['layer']]}"


def _layer(found: str | Layer) -> Layer:
    return Layer((found,)) if isinstance(found, str) else found


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
    elif rows == "equal":
        sizes = [size // parts] * parts
    else:
        sizes = list(rows)
    if len(sizes) != parts or sum(sizes) != size or (rows == "square" and sizes[-1] < 1):
        return None
    ends = list(accumulate(sizes))
    return tuple((end - own, end) for end, own in zip(ends, sizes, strict=True))
