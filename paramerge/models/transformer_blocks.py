"""The blocks of transformers, by their numbers: ``DB00``, ``DB01`` ... of one kind, ``SB00`` of another."""

from __future__ import annotations

import re
from typing import NamedTuple

from paramerge.models.record import BlockNames

BASE = "BASE"
_OTHERS = (17, 26, 25, 12, 20, 19)
"""Lengths of vectors for UNets, whose presets would else be taken for a transformer's."""


class Kind(NamedTuple):
    """Blocks of one kind: the letters of their names, diffusers' path before the number, and how many."""

    letters: str
    path: str
    number: int


def numbered_blocks(*kinds: Kind, depths: tuple[int, ...] = ()) -> BlockNames:
    """The blocks of a transformer; a vector names them all, with the base before them or without.

    Parameters
    ----------
    kinds:
        In the order of the model, with the most blocks that a published model of it has.
    depths:
        Numbers of blocks of smaller models, where there is one kind.
    """
    every = [f"{kind.letters}{number:02}" for kind in kinds for number in range(kind.number)]
    letters = {kind.path: kind.letters for kind in kinds}
    pattern = re.compile(rf"({'|'.join(re.escape(path) for path in letters)})\.(\d+)\.")

    def of(path: str) -> str:
        match = pattern.match(path)
        return f"{letters[match[1]]}{int(match[2]):02}" if match else BASE

    vectors: dict[int, tuple[str, ...]] = {}
    for depth in (len(every), *depths):
        some = tuple(every[:depth])
        vectors[depth + 1] = (BASE, *some)
        if depth not in _OTHERS:
            vectors[depth] = some
    return BlockNames((BASE, *every), of, vectors)


def double_and_single(
    doubles: int, singles: int, double: str = "transformer_blocks", single: str = "single_transformer_blocks"
) -> BlockNames:
    """Blocks with two streams, then blocks with one."""
    return numbered_blocks(Kind("DB", double, doubles), Kind("SB", single, singles))


def one_stack(count: int, path: str = "transformer_blocks", depths: tuple[int, ...] = ()) -> BlockNames:
    """Blocks of one kind."""
    return numbered_blocks(Kind("TB", path, count), depths=depths)
