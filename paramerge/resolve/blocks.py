"""Block weights: an adapter's strength by block of the model, as user interfaces number blocks.

A weight multiplies the step's strength. The architecture's record has the blocks, and those that a vector
names: in SD1.5 ``IN00`` to ``IN11``, ``MID``, ``OUT00`` to ``OUT11`` and ``BASE``, and vectors of 17, 26 or
25 numbers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paramerge.errors import UsageError
from paramerge.models.names import ModuleName, split_kind
from paramerge.models.record import BlockNames
from paramerge.models.registry import record_of, records
from paramerge.resolve.block_presets import PRESETS
from paramerge.wording import option

_NUMBERED = re.compile(r"(.*\D)\d+")


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """Weights by block: of named ones (all others keep 1), or of all that a vector names.

    Attributes
    ----------
    named:
        ``IN04``, ``MID``, ``OUT00`` ..., or ``IN`` and ``OUT`` for all of a way.
    vector:
        17, 26, 25, 12, 20 or 19 numbers; where only the base is not among them, it keeps 1.
    """

    named: tuple[tuple[str, float], ...] = ()
    vector: tuple[float, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        """All weights that are given."""
        return self.vector or tuple(weight for _, weight in self.named)

    def resolve(self, architecture: str) -> Mapping[str, float]:
        """Each block's weight; blocks that are not among the keys have none.

        Raises
        ------
        UsageError
            The architecture has no such block, no vector of this length, or no named blocks at all.
        """
        names = block_names(architecture)
        if self.vector:
            vectors = _blocks(architecture).vectors
            if len(self.vector) not in vectors:
                lengths = list(vectors)
                raise UsageError(
                    f"this vector of block weights is not one of {architecture}",
                    where="block weights",
                    expected=f"{' or '.join(map(str, lengths))} numbers" if lengths else "named blocks",
                    found=f"{len(self.vector)} numbers" if not lengths else len(self.vector),
                    hint=f"{lengths[0]}: {','.join(vectors[lengths[0]])}" if lengths else names[0] + "=0.5",
                )
            weights = dict(zip(vectors[len(self.vector)], self.vector, strict=True))
            return {names[0]: 1.0, **weights} if len(weights) == len(names) - 1 else weights
        weights = dict.fromkeys(names, 1.0)
        for name, weight in sorted(self.named, key=lambda item: len(item[0])):  # IN before IN04
            here = [block for block in names if _is_of(block, name)]
            if not here:
                raise UsageError(
                    f"{architecture} has no such block",
                    where=f"block weights: {name}={weight:g}",
                    expected=f"{names[0]}, {names[1]} to {names[-1]}, {' or '.join(_prefixes(names))}",
                    found=name,
                )
            weights.update(dict.fromkeys(here, weight))
        return weights


@dataclass(frozen=True, slots=True)
class BlockUse:
    """The use of one block by a step: its weight and the adapter's layers (norms, biases) there."""

    block: str
    weight: float
    layers: int


def parse_blocks(text: str) -> BlockWeights:
    """Read ``IN04=0.5,OUT00=0``, ``1,0,0,0.5,...``, or the name of a vector: ``GRAD_V``.

    Raises
    ------
    UsageError
        It is neither, or a number is not finite, or a block is named twice.
    """
    if text.strip().upper() in PRESETS:
        return BlockWeights(vector=PRESETS[text.strip().upper()])
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
    """All blocks of an architecture, the one for layers in no block first.

    Raises
    ------
    UsageError
        It has no named blocks.
    """
    return list(_blocks(architecture).names)


def _blocks(architecture: str) -> BlockNames:
    blocks = record_of(architecture).blocks
    if blocks is None:
        having = [record.name for record in records() if record.blocks is not None and record.family is None]
        raise UsageError(
            f"the blocks of {architecture} have no names",
            where="block weights",
            expected=f"a base of {', '.join(having)}",
            hint=f"choose layers with {option('only')} instead",
        )
    return blocks


def block_of(name: ModuleName, architecture: str) -> str:
    """The block of a layer, norm or bias.

    Raises
    ------
    UsageError
        The architecture has no named blocks, or none with such a layer.
    """
    record, blocks = record_of(architecture), _blocks(architecture)
    if name.component != record.component:
        return blocks.names[0]
    stem, kind = split_kind(name.path)
    layers = (layer for key_map in record.key_maps if (layer := key_map.layer(stem)) is not None)
    layer = next(layers, None)  # by the single file's name, of parts of one block
    block = blocks.of(name.path if layer is None else layer.parts[0] + kind)
    if block is None:
        raise UsageError(
            "this layer is in no block that has a name",
            where=f"block weights: {name}",
            expected=f"a layer of {architecture}",
            hint=f"choose layers with {option('only')} instead",
        )
    return block


def used_blocks(
    given: BlockWeights, names: Iterable[ModuleName], architecture: str, where: object
) -> tuple[dict[ModuleName, float], tuple[BlockUse, ...]]:
    """The weight of each of an adapter's layers, and the use of each block.

    Raises
    ------
    UsageError
        A named block holds no layer of the adapter, or layers are in blocks that a vector does not name.
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
            hint=f"give all {max(_blocks(architecture).vectors)}, or name single blocks: IN04=0.5,OUT00=0",
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


def _is_of(block: str, name: str) -> bool:
    """Whether ``name`` means ``block``: by itself, or as ``IN`` or ``OUT``."""
    return name in (block, *_prefixes([block]))


def _prefixes(blocks: Iterable[str]) -> list[str]:
    """The names of blocks before their numbers: ``IN``, ``OUT``."""
    matches = [_NUMBERED.fullmatch(block) for block in blocks]
    return list(dict.fromkeys(match[1] for match in matches if match is not None))


def _canonical(name: str) -> str:
    name = name.strip().upper()
    return "MID" if name in ("M00", "MID00") else name


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _unreadable(whole) from None
    if not math.isfinite(value):
        raise UsageError("a block weight is not a finite number", where=f"block weights: {whole}", found=text)
    return value


def _lengths() -> str:
    """The lengths of all vectors of UNets: ``17, 26, 25, 12, 20 or 19``."""
    known = [record.blocks.vectors for record in records() if record.blocks is not None and record.unet]
    *first, last = dict.fromkeys(str(length) for vectors in known for length in vectors)
    return f"{', '.join(first)} or {last}"


def _unreadable(text: str) -> UsageError:
    return UsageError(
        "these block weights cannot be read",
        where=f"block weights: {text}",
        expected=f"named blocks, such as IN04=0.5,OUT00=0, a vector of {_lengths()} numbers, or the name of "
        "one, such as GRAD_V",
        found=text,
    )
