"""Which architecture a UNet is, from its blocks; and whether its widths are the published ones.

Widths alone decide nothing: a scaled-down model with SD1.5's blocks is structurally ``sd15``. What tells
the architectures apart is which levels have transformers, how deep these are, how they project their input,
what is added to the time embedding, and the number of input channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from paramerge.checkpoints.blueprint import BLUEPRINTS
from paramerge.checkpoints.blueprint_inventory import UNetConfig
from paramerge.checkpoints.unet_structure import UNetStructure, infer_structure

__all__ = ["UNKNOWN", "Architecture", "UNetFacts", "detect_architecture", "plain_architecture", "unet_facts"]

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture's name and whether all widths that adapters meet are those of the published model."""

    name: str
    """``sd15``, ``sd2``, ``sdxl``, ``sdxl-refiner``, one of these with ``-inpainting`` ..., ``unknown``."""
    true_dimensions: bool


@dataclass(frozen=True, slots=True)
class UNetFacts:
    """What the keys and shapes of a UNet say."""

    structure: UNetStructure
    channels: tuple[int, ...]
    """Width of each level on the way down."""
    depths: tuple[int, ...]
    """Transformer blocks at each level on the way down; 0 for a level without."""
    mid_depth: int
    context: int | None
    """Width of the text that cross attention reads; None without cross attention."""
    linear_projection: bool | None
    in_channels: int
    out_channels: int
    added: int | None
    """Width of the micro-conditioning (SDXL), or None."""
    class_embedding: bool


_DEPTH = re.compile(r"(down_blocks\.(\d+)|mid_block)\.attentions\.\d+\.transformer_blocks\.(\d+)\.")


def unet_facts(shapes: Mapping[str, tuple[int, ...]]) -> UNetFacts:
    """Read the facts off a UNet's keys (diffusers' names) and shapes.

    Raises
    ------
    CheckpointError
        Blocks are missing.
    """
    structure = infer_structure(shapes)
    levels = range(len(structure.down))
    depths = dict.fromkeys([*map(str, levels), "mid"], 0)
    for key in shapes:
        if match := _DEPTH.match(key):
            level = match[2] or "mid"
            depths[level] = max(depths[level], int(match[3]) + 1)
    contexts = {shape[-1] for key, shape in shapes.items() if key.endswith(".attn2.to_k.weight") and shape}
    projections = {len(shape) == 2 for key, shape in shapes.items() if key.endswith(".proj_in.weight")}
    added = shapes.get("add_embedding.linear_1.weight")
    return UNetFacts(
        structure,
        tuple(_first(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in levels),
        tuple(depths[str(i)] for i in levels),
        depths["mid"],
        contexts.pop() if len(contexts) == 1 else None,
        projections.pop() if len(projections) == 1 else None,
        _first(shapes, "conv_in.weight", 1),
        _first(shapes, "conv_out.weight", 0),
        added[-1] if added else None,
        any(key.startswith("class_embedding.") for key in shapes),
    )


def _first(shapes: Mapping[str, tuple[int, ...]], key: str, axis: int) -> int:
    shape = shapes.get(key, ())
    return shape[axis] if len(shape) > axis else 0


def detect_architecture(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """The architecture of a UNet, given its keys (diffusers' names) and shapes.

    Raises
    ------
    CheckpointError
        Blocks are missing.
    """
    facts = unet_facts(shapes)
    family = _family(facts)
    if family == UNKNOWN:
        return Architecture(UNKNOWN, False)
    config = BLUEPRINTS[family]().unet
    return Architecture(family + _input_suffix(facts), _has_dimensions_of(facts, config))


def plain_architecture(name: str) -> str:
    """The architecture without what its input says: ``sd15`` of ``sd15-inpainting``.

    Both have the same layers, but for the shape of the first convolution.
    """
    if name in BLUEPRINTS:
        return name
    plain = sorted(BLUEPRINTS, key=len, reverse=True)  # sdxl-refiner before sdxl
    return next((known for known in plain if name.startswith(f"{known}-")), name)


def _family(facts: UNetFacts) -> str:
    """The architecture whose blocks these are, input channels aside."""
    if facts.class_embedding:
        return UNKNOWN  # unCLIP and upscalers
    for name in ("sdxl", "sdxl-refiner"):
        if _has_blocks_of(facts, BLUEPRINTS[name]().unet):
            return name
    if not _has_blocks_of(facts, BLUEPRINTS["sd15"]().unet, projection=False):
        return UNKNOWN
    # SD1 and SD2 have the same blocks; SD2's transformers project with Linear layers, SD1's with convolutions
    return "sd2" if facts.linear_projection else "sd15"


def _has_blocks_of(facts: UNetFacts, config: UNetConfig, projection: bool = True) -> bool:
    return (
        facts.structure == config.structure
        and facts.depths == config.depths
        and facts.mid_depth == config.mid_depth
        and (facts.added is not None) == (config.time_ids > 0)
        and (not projection or facts.linear_projection == config.linear_projection)
    )


def _has_dimensions_of(facts: UNetFacts, config: UNetConfig) -> bool:
    added = config.pooled + config.time_ids * config.time_id_width or None
    return (facts.channels, facts.context, facts.added) == (config.channels, config.context, added)


_INPUT_SUFFIXES = {4: "", 9: "-inpainting", 8: "-pix2pix", 5: "-depth"}


def _input_suffix(facts: UNetFacts) -> str:
    """What more than latents of 4 channels goes in; latents of another width are told by their number."""
    if facts.out_channels == facts.in_channels != 4:
        return f"-{facts.in_channels}-channels"
    return _INPUT_SUFFIXES.get(facts.in_channels, f"-{facts.in_channels}-channels")
