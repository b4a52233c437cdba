"""The blocks of a UNet: stated, or read off its keys; and LDM's and diffusers' names for each.

A UNet of this family is a list of blocks on the way down, a middle, and a list of blocks on the way up.
LDM numbers the blocks of each way through; diffusers numbers levels, and the resnets, transformers and
resamplers within a level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from paramerge.errors import CheckpointError

_FIXED_BLOCKS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution on the way down or up."""

    attentions: tuple[bool, ...]
    """For each resnet, whether a transformer follows it."""
    resampler: bool
    """Whether the level ends with a downsampler (way down) or an upsampler (way up)."""


@dataclass(frozen=True, slots=True)
class UNetStructure:
    """The blocks of a UNet; widths and transformer depths do not matter for names."""

    down: tuple[Level, ...]
    up: tuple[Level, ...]
    mid_attention: bool = True
    label: str = "add_embedding"
    """Diffusers' name for ``label_emb``: ``add_embedding`` (SDXL) or ``class_embedding`` (unCLIP SD2)."""

    def blocks(self) -> Iterator[tuple[str, str]]:
        """Pairs of prefixes ``(LDM, diffusers)``, one for each block, in the order of the forward pass."""
        yield from _FIXED_BLOCKS.items()
        yield "label_emb.0.0", f"{self.label}.linear_1"
        yield "label_emb.0.2", f"{self.label}.linear_2"
        index = 1
        for number, level in enumerate(self.down):
            for layer, attention in enumerate(level.attentions):
                yield f"input_blocks.{index}.0", f"down_blocks.{number}.resnets.{layer}"
                if attention:
                    yield f"input_blocks.{index}.1", f"down_blocks.{number}.attentions.{layer}"
                index += 1
            if level.resampler:
                yield f"input_blocks.{index}.0.op", f"down_blocks.{number}.downsamplers.0.conv"
                index += 1
        yield "middle_block.0", "mid_block.resnets.0"
        if self.mid_attention:
            yield "middle_block.1", "mid_block.attentions.0"
        yield f"middle_block.{1 + self.mid_attention}", "mid_block.resnets.1"
        index = 0
        for number, level in enumerate(self.up):
            for layer, attention in enumerate(level.attentions):
                yield f"output_blocks.{index}.0", f"up_blocks.{number}.resnets.{layer}"
                if attention:
                    yield f"output_blocks.{index}.1", f"up_blocks.{number}.attentions.{layer}"
                index += 1
            if level.resampler:
                # the upsampler shares the block of the level's last resnet, after its transformer
                position = 1 + level.attentions[-1]
                yield f"output_blocks.{index - 1}.{position}.conv", f"up_blocks.{number}.upsamplers.0.conv"


def standard_structure(
    attention: tuple[bool, ...], layers_per_block: int = 2, label: str = "add_embedding"
) -> UNetStructure:
    """The structure of a Stable Diffusion UNet.

    ``attention`` says which levels, from the finest to the coarsest, have transformers: SD1.5 and SD2 are
    ``(True, True, True, False)``, SDXL is ``(False, True, True)``, its refiner is
    ``(False, True, True, False)``.
    """
    last = len(attention) - 1
    down = tuple(Level((has,) * layers_per_block, i < last) for i, has in enumerate(attention))
    up = tuple(Level((has,) * (layers_per_block + 1), i < last) for i, has in enumerate(reversed(attention)))
    return UNetStructure(down, up, label=label)


_LDM_BLOCK = re.compile(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(.+)")
_DIFFUSERS_BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\."
)


def infer_structure(keys: Iterable[str]) -> UNetStructure:
    """Read the structure off the UNet's keys (all of them, without prefix, of either naming).

    Raises
    ------
    CheckpointError
        The keys leave gaps (a block is missing), or they are not a UNet's.
    """
    keys = list(keys)
    ldm = any(key.startswith("input_blocks.") for key in keys)
    structure = _infer_from_ldm(keys) if ldm else _infer_from_diffusers(keys)
    _check_skips(structure)
    return structure


def _check_skips(structure: UNetStructure) -> None:
    """Every resnet on the way up reads one block's output on the way down: their numbers are the same."""
    left = 1 + sum(len(level.attentions) + level.resampler for level in structure.down)
    read = sum(len(level.attentions) for level in structure.up)
    if left != read:
        raise CheckpointError(
            "the UNet is incomplete: its way down and its way up do not fit",
            where="the UNet's blocks",
            expected=f"{left} resnets on the way up, for as many outputs on the way down",
            found=f"{read} resnets on the way up",
        )


def _infer_from_ldm(keys: list[str]) -> UNetStructure:
    contents: dict[str, dict[int, set[str]]] = {"input_blocks": {}, "output_blocks": {}, "middle_block": {}}
    for key in keys:
        if match := _LDM_BLOCK.match(key):
            contents[match[1]].setdefault(int(match[2]), set()).add(_content(match[3]))
    down = _levels(_consecutive("input_blocks", contents["input_blocks"], start=1))
    up = _levels(_consecutive("output_blocks", contents["output_blocks"], start=0))
    mid_attention = not any(key.startswith("middle_block.1.in_layers.") for key in keys)
    labelled = any(key.startswith("label_emb.") for key in keys)
    # unCLIP models of SD2 have transformers at the finest level, SDXL and its refiner have none
    unclip = labelled and bool(down) and any(down[0].attentions)
    return UNetStructure(down, up, mid_attention, "class_embedding" if unclip else "add_embedding")


def _content(rest: str) -> str:
    """The content of a key's LDM block: the numbered parts differ by their layers."""
    position, _, layer = rest.partition(".")
    if layer.startswith(("op.", "conv.")):
        return "resampler"
    if position == "0":
        return "resnet"
    return "attention"


def _consecutive(way: str, blocks: dict[int, set[str]], start: int) -> list[set[str]]:
    wanted = range(start, max(blocks, default=start) + 1)
    if missing := [i for i in wanted if i not in blocks]:
        raise CheckpointError(
            "the UNet is incomplete: blocks are missing",
            where=", ".join(f"{way}.{i}" for i in missing[:8]),
            expected=f"{way}.{start} to {way}.{wanted[-1]}" if wanted else f"{way}.{start} and on",
            found=f"{len(blocks)} blocks",
        )
    return [blocks[i] for i in wanted]


def _levels(blocks: list[set[str]]) -> tuple[Level, ...]:
    """Group numbered LDM blocks into levels: a resampler ends a level."""
    levels: list[Level] = []
    attentions: list[bool] = []
    for block in blocks:
        if "resnet" in block:
            attentions.append("attention" in block)
        if "resampler" in block:
            levels.append(Level(tuple(attentions), True))
            attentions = []
    if attentions:
        levels.append(Level(tuple(attentions), False))
    return tuple(levels)


def _infer_from_diffusers(keys: list[str]) -> UNetStructure:
    found: dict[tuple[str, int, str], set[int]] = {}
    for key in keys:
        if match := _DIFFUSERS_BLOCK.match(key):
            found.setdefault((match[1], int(match[2]), match[3]), set()).add(int(match[4]))
    down, up = _diffusers_levels(found, "down"), _diffusers_levels(found, "up")
    mid_attention = any(key.startswith("mid_block.attentions.") for key in keys)
    classes = any(key.startswith("class_embedding.") for key in keys)
    return UNetStructure(down, up, mid_attention, "class_embedding" if classes else "add_embedding")


def _diffusers_levels(found: dict[tuple[str, int, str], set[int]], way: str) -> tuple[Level, ...]:
    numbers = {number for direction, number, _ in found if direction == way}
    levels = []
    for number in range(max(numbers, default=-1) + 1):
        resnets = found.get((way, number, "resnets"), set())
        if not resnets or resnets != set(range(len(resnets))):
            raise CheckpointError(
                "the UNet is incomplete: resnets are missing",
                where=f"{way}_blocks.{number}",
                expected="resnets numbered from 0 without gaps",
                found=sorted(resnets) or "none",
            )
        attentions = found.get((way, number, "attentions"), set())
        resampler = (way, number, f"{way}samplers") in found
        levels.append(Level(tuple(i in attentions for i in range(len(resnets))), resampler))
    return tuple(levels)
