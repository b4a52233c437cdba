"""The blocks of a UNet as user interfaces number them: ``IN00`` ..., ``MID``, ``OUT00`` ..., ``BASE``.

They are LDM's; ``BASE`` is for the text encoders and all layers in no block (time embedding, output). Vectors
are those of the LoRA Block Weight extension, in its order, and those of block merges, where the base has a
number of its own elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from paramerge.models.record import BlockNames
from paramerge.models.unet_keys import UNetKeyMap
from paramerge.models.unet_structure import UNetStructure

_BASE, _MID = "BASE", "MID"
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.")


def _numbered(way: str, numbers: Iterable[int]) -> list[str]:
    return [f"{way}{number:02}" for number in numbers]


_VECTORS = {
    17: (_BASE, *_numbered("IN", (1, 2, 4, 5, 7, 8)), _MID, *_numbered("OUT", range(3, 12))),
    26: (_BASE, *_numbered("IN", range(12)), _MID, *_numbered("OUT", range(12))),
    12: (_BASE, *_numbered("IN", (4, 5, 7, 8)), _MID, *_numbered("OUT", range(6))),
    20: (_BASE, *_numbered("IN", range(9)), _MID, *_numbered("OUT", range(9))),
    25: (*_numbered("IN", range(12)), _MID, *_numbered("OUT", range(12))),
    19: (*_numbered("IN", range(9)), _MID, *_numbered("OUT", range(9))),
}
"""The blocks that a vector of this many numbers names, in its order."""


def unet_blocks(structure: UNetStructure, lengths: Iterable[int]) -> BlockNames:
    """The blocks of a UNet whose levels are as LDM numbers them, with vectors of these ``lengths``."""
    count = 3 * len(structure.down)

    @cache
    def key_map() -> UNetKeyMap:
        return UNetKeyMap(structure)

    def block_of(path: str) -> str | None:
        ldm = key_map().to_ldm(path)
        if ldm is None:
            return None
        if ldm.startswith("middle_block."):
            return _MID
        match = _BLOCK.match(ldm)
        return _BASE if match is None else f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02}"

    names = (_BASE, *_numbered("IN", range(count)), _MID, *_numbered("OUT", range(count)))
    return BlockNames(names, block_of, {length: _VECTORS[length] for length in lengths})
