"""Block weights: an adapter's strength by block of the UNet, as user interfaces number blocks.

A weight multiplies the step's strength. Blocks are those of LDM: ``IN00`` to ``IN11``, ``MID``, ``OUT00`` to
``OUT11`` in SD1.5 (to 08 in SDXL), and ``BASE`` for the text encoders and all that lies in no block (time
embedding, output). Vectors are those of the LoRA Block Weight extension: 17 or 26 numbers for SD1.5 and SD2,
12 or 20 for SDXL, in its order.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from paramerge.errors import UsageError
from paramerge.models.names import ModuleName
from paramerge.models.unet_keys import UNetKeyMap
from paramerge.models.unet_structure import standard_structure
from paramerge.wording import option

__all__ = ["BlockUse", "BlockWeights", "block_names", "block_of", "parse_blocks", "used_blocks"]

_LEVELS = {
    "sd15": (True, True, True, False),
    "sd2": (True, True, True, False),
    "sdxl": (False, True, True),
    "sdxl-refiner": (False, True, True, False),
}
"""Which levels have transformers, by architecture."""

_BASE, _MID = "BASE", "MID"
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.")
_NUMBERED = re.compile(r"(IN|OUT)\d{2}")


def _numbered(way: str, numbers: Iterable[int]) -> list[str]:
    return [f"{way}{number:02}" for number in numbers]


_VECTORS = {
    17: (_BASE, *_numbered("IN", (1, 2, 4, 5, 7, 8)), _MID, *_numbered("OUT", range(3, 12))),
    26: (_BASE, *_numbered("IN", range(12)), _MID, *_numbered("OUT", range(12))),
    12: (_BASE, *_numbered("IN", (4, 5, 7, 8)), _MID, *_numbered("OUT", range(6))),
    20: (_BASE, *_numbered("IN", range(9)), _MID, *_numbered("OUT", range(9))),
}
"""The blocks that a vector of this many numbers names, in its order."""

_LENGTHS = {"sd15": (17, 26), "sd2": (17, 26), "sdxl": (12, 20), "sdxl-refiner": (26,)}


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """Weights by block: of named ones (all others keep 1), or of all that a vector names.

    Attributes
    ----------
    named:
        ``IN04``, ``MID``, ``OUT00`` ..., or ``IN`` and ``OUT`` for all of a way.
    vector:
        17, 26, 12 or 20 numbers.
    """

    named: tuple[tuple[str, float], ...] = ()
    vector: tuple[float, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        """All weights that are given."""
        return self.vector or tuple(weight for _, weight in self.named)

    def resolve(self, architecture: str) -> Mapping[str, float]:
        """Each block's weight; blocks that are not among the keys are not spoken of.

        Raises
        ------
        UsageError
            The architecture has no such block, no vector of this length, or no named blocks at all.
        """
        names = block_names(architecture)
        if self.vector:
            lengths = _LENGTHS[_plain(architecture)]
            if len(self.vector) not in lengths:
                raise UsageError(
                    f"this vector of block weights is not one of {architecture}",
                    where="block weights",
                    expected=f"{' or '.join(map(str, lengths))} numbers",
                    found=len(self.vector),
                    hint=f"{lengths[0]}: {','.join(_VECTORS[lengths[0]])}",
                )
            return dict(zip(_VECTORS[len(self.vector)], self.vector, strict=True))
        weights = dict.fromkeys(names, 1.0)
        for name, weight in sorted(self.named, key=lambda item: len(item[0])):  # IN before IN04
            here = [block for block in names if _is_of(block, name)]
            if not here:
                raise UsageError(
                    f"{architecture} has no such block",
                    where=f"block weights: {name}={weight:g}",
                    expected=f"{names[0]}, {names[1]} to {names[-1]}, IN or OUT",
                    found=name,
                )
            weights.update(dict.fromkeys(here, weight))
        return weights


@dataclass(frozen=True, slots=True)
class BlockUse:
    """What a step does in one block: its weight and the layers (norms, biases) of the adapter there."""

    block: str
    weight: float
    layers: int


def parse_blocks(text: str) -> BlockWeights:
    """Read ``IN04=0.5,OUT00=0`` or ``1,0,0,0.5,...``.

    Raises
    ------
    UsageError
        It is neither, or a number is not finite, or a block is named twice.
    """
    parts = [part.strip() for part in text.split(",")]
    named = [part.partition("=") for part in parts]
    if all(equals for _, equals, _ in named):
        names = [_canonical(name) for name, _, _ in named]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UsageError("a block is weighted twice", where="block weights", found=", ".join(twice))
        weights = [_number(weight, text) for _, _, weight in named]
        return BlockWeights(named=tuple(zip(names, weights, strict=True)))
    if len(parts) < 2 or any(equals for _, equals, _ in named):
        raise _unreadable(text)
    return BlockWeights(vector=tuple(_number(part, text) for part in parts))


def block_names(architecture: str) -> list[str]:
    """All blocks of an architecture, ``BASE`` first.

    Raises
    ------
    UsageError
        It has no named blocks.
    """
    plain = _plain(architecture)
    if plain not in _LEVELS:
        raise UsageError(
            f"the blocks of {architecture} have no names here",
            where="block weights",
            expected=f"a base of {', '.join(_LEVELS)}",
            hint=f"choose layers with {option('only')} instead",
        )
    count = 3 * len(_LEVELS[plain])
    return [_BASE, *_numbered("IN", range(count)), _MID, *_numbered("OUT", range(count))]


def block_of(name: ModuleName, architecture: str) -> str:
    """The block that a layer, norm or bias lies in.

    Raises
    ------
    UsageError
        The architecture has no named blocks, or none with such a layer.
    """
    if name.component != "unet":
        return _BASE
    path = _key_map(_plain(architecture)).to_ldm(name.path)
    if path is None:
        raise UsageError(
            "this layer lies in no block that has a name",
            where=f"block weights: {name}",
            expected=f"a layer of {architecture}",
            hint=f"choose layers with {option('only')} instead",
        )
    if path.startswith("middle_block."):
        return _MID
    match = _BLOCK.match(path)
    if match is None:
        return _BASE
    return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02}"


def used_blocks(
    given: BlockWeights, names: Iterable[ModuleName], architecture: str, where: object
) -> tuple[dict[ModuleName, float], tuple[BlockUse, ...]]:
    """The weight of each of an adapter's layers, and what each block comes to.

    Raises
    ------
    UsageError
        A named block holds no layer of the adapter, or layers lie in blocks that a vector does not name.
    """
    weights = given.resolve(architecture)
    blocks = {name: block_of(name, architecture) for name in names}
    counts = Counter(blocks.values())
    unnamed = sorted({block for block in counts if block not in weights})
    if unnamed:
        raise UsageError(
            "this vector of block weights leaves out blocks that the adapter changes",
            where=where,
            expected=f"a weight for {', '.join(unnamed)} too",
            found=f"{len(given.vector)} numbers",
            hint=f"give all {max(_LENGTHS[_plain(architecture)])}, or name single blocks: IN04=0.5,OUT00=0",
        )
    empty = [name for name, _ in given.named if not any(_is_of(block, name) for block in counts)]
    if empty:
        raise UsageError(
            "a weighted block holds no layer of this adapter",
            where=where,
            expected=f"some of {', '.join(sorted(counts))}",
            found=", ".join(empty),
        )
    uses = tuple(BlockUse(b, weights[b], counts[b]) for b in block_names(architecture) if b in counts)
    return {name: weights[block] for name, block in blocks.items()}, uses


def _plain(architecture: str) -> str:
    return architecture.removesuffix("-inpainting")


def _is_of(block: str, name: str) -> bool:
    """Whether ``name`` means ``block``: by itself, or as ``IN`` or ``OUT``."""
    match = _NUMBERED.fullmatch(block)
    return block == name or (match is not None and match[1] == name)


@cache
def _key_map(architecture: str) -> UNetKeyMap:
    return UNetKeyMap(standard_structure(_LEVELS[architecture]))


def _canonical(name: str) -> str:
    name = name.strip().upper()
    return _MID if name in ("M00", "MID00") else name


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _unreadable(whole) from None
    if not math.isfinite(value):
        raise UsageError("a block weight is not a finite number", where=f"block weights: {whole}", found=text)
    return value


def _unreadable(text: str) -> UsageError:
    return UsageError(
        "these block weights cannot be read",
        where=f"block weights: {text}",
        expected="named blocks, such as IN04=0.5,OUT00=0, or a vector of 17, 26, 12 or 20 numbers",
        found=text,
    )
