"""The names of UNet layers: those of single files (LDM) and those of diffusers, as a bijection.

A UNet of this family is a list of blocks on the way down, a middle, and a list of blocks on the way up.
LDM numbers the blocks of each way through; diffusers numbers levels, and the resnets, transformers and
resamplers within a level. Inside a block only the resnets' layers have two names.

:class:`UNetStructure` says which blocks there are. It is read off a complete set of keys of either naming
(:func:`infer_structure`) or stated (:func:`standard_structure`); :class:`UNetKeyMap` then translates
exactly. Where only a name is at hand, :func:`ldm_to_diffusers` computes the other from the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from paramerge.errors import CheckpointError

__all__ = [
    "LDM_UNET_PREFIX",
    "Level",
    "UNetKeyMap",
    "UNetStructure",
    "infer_structure",
    "is_diffusers_unet_key",
    "is_ldm_unet_key",
    "ldm_to_diffusers",
    "standard_structure",
]

LDM_UNET_PREFIX = "model.diffusion_model."
"""What stands before the UNet's keys in a single file."""

_RESNET_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESNET_LAYERS_BACK = {new: old for old, new in _RESNET_LAYERS.items()}

_FIXED_BLOCKS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

_LDM_KEY = re.compile(r"(input_blocks|output_blocks|middle_block)\.\d+\.|(time_embed|label_emb|out)\.\d\.")
_DIFFUSERS_KEY = re.compile(
    r"(down_blocks|up_blocks)\.\d+\.\w+\.\d+\.|mid_block\.\w+\.\d+\."
    r"|(conv_in|conv_norm_out|conv_out)\.(weight|bias)$|(time|add|class)_embedding\."
)


def is_ldm_unet_key(key: str) -> bool:
    """Whether ``key`` (without any prefix) is named as the UNet's in a single file."""
    return _LDM_KEY.match(key) is not None


def is_diffusers_unet_key(key: str) -> bool:
    """Whether ``key`` (without any prefix) is named as in a diffusers UNet."""
    return _DIFFUSERS_KEY.match(key) is not None


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution on the way down or up."""

    attentions: tuple[bool, ...]
    """For each resnet, whether a transformer follows it."""
    resampler: bool
    """Whether the level ends with a downsampler (way down) or an upsampler (way up)."""


@dataclass(frozen=True, slots=True)
class UNetStructure:
    """Which blocks a UNet has; widths and transformer depths do not matter for names."""

    down: tuple[Level, ...]
    up: tuple[Level, ...]
    mid_attention: bool = True
    label: str = "add_embedding"
    """What diffusers calls ``label_emb``: ``add_embedding`` (SDXL) or ``class_embedding`` (unCLIP SD2)."""

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


class UNetKeyMap:
    """Translates layer paths and keys between LDM and diffusers for one structure.

    Both directions take a module path (``input_blocks.4.1.proj_in``) or a key (with ``.weight``) without
    prefix and return None where the structure has no such block.
    """

    def __init__(self, structure: UNetStructure) -> None:
        self.structure = structure

    @cached_property
    def _forward(self) -> dict[str, str]:
        return dict(self.structure.blocks())

    @cached_property
    def _backward(self) -> dict[str, str]:
        return {new: old for old, new in self.structure.blocks()}

    def to_diffusers(self, path: str) -> str | None:
        """The diffusers name of the LDM ``path``."""
        found = _split(path, self._forward)
        return found and _join(*found, _RESNET_LAYERS)

    def to_ldm(self, path: str) -> str | None:
        """The LDM name of the diffusers ``path``."""
        found = _split(path, self._backward)
        return found and _join(*found, _RESNET_LAYERS_BACK)


def _split(path: str, blocks: dict[str, str]) -> tuple[str, str, bool] | None:
    """Split ``path`` after its block: (the block's other name, the rest, whether it is a resnet)."""
    end = len(path)
    while end > 0:
        block = path[:end]
        if block in blocks:
            return blocks[block], path[end + 1 :], ".resnets." in block or ".resnets." in blocks[block]
        end = path.rfind(".", 0, end)
    return None


def _join(block: str, rest: str, resnet: bool, layers: dict[str, str]) -> str | None:
    if not rest or not resnet:
        return f"{block}.{rest}" if rest else block
    for old, new in layers.items():
        if rest == old or rest.startswith(f"{old}."):
            return f"{block}.{new}{rest[len(old) :]}"
    return None


_UNNUMBERED = UNetKeyMap(UNetStructure((), ()))
_LDM_NUMBERED = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)(?:\.(.+))?$")


def ldm_to_diffusers(path: str, layers_per_block: int = 2) -> str | None:
    """The diffusers name of an LDM layer by arithmetic on its numbers alone.

    Equals :meth:`UNetKeyMap.to_diffusers` for every structure of :func:`standard_structure` with the same
    ``layers_per_block``; needs no key set. None for a name that is not of a UNet's layer.
    """
    match = _LDM_NUMBERED.match(path)
    if match is None or path.startswith("input_blocks.0."):
        return _UNNUMBERED.to_diffusers(path)
    way, index, position, rest = match[1], int(match[2]), int(match[3]), match[4] or ""
    if way == "input_blocks":
        level, layer = divmod(index - 1, layers_per_block + 1)
        block, resampler, word = f"down_blocks.{level}", "downsamplers.0.conv", "op"
    else:
        level, layer = divmod(index, layers_per_block + 1)
        block, resampler, word = f"up_blocks.{level}", "upsamplers.0.conv", "conv"
    first, _, tail = rest.partition(".")
    if first == word:
        return _join(f"{block}.{resampler}", tail, False, {})
    if position > 1:
        return None
    kind = ("resnets", "attentions")[position]
    return _join(f"{block}.{kind}.{layer}", rest, position == 0, _RESNET_LAYERS)


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
    if any(key.startswith("input_blocks.") for key in keys):
        return _infer_from_ldm(keys)
    return _infer_from_diffusers(keys)


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
    """What a key shows its LDM block to hold: the numbered parts are told apart by their layers."""
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
