"""Which architecture a UNet is, from its blocks; and whether its widths are the published ones.

Widths alone decide nothing: a scaled-down model with SD1.5's blocks is structurally ``sd15``. What tells
the architectures apart is which levels have transformers, how deep these are, how they project their input,
what is added to the time embedding, and the number of input channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from paramerge.models.blueprint import BLUEPRINTS
from paramerge.models.blueprint_inventory import UNetConfig
from paramerge.models.unet_structure import UNetStructure, infer_structure, standard_structure

__all__ = [
    "MODELSPEC_NAMES",
    "UNKNOWN",
    "Architecture",
    "UNetFacts",
    "detect_architecture",
    "plain_architecture",
    "unet_facts",
]

UNKNOWN = "unknown"

MODELSPEC_NAMES = {
    "sd15": "stable-diffusion-v1",
    "sd15-inpainting": "stable-diffusion-v1-inpainting",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
}
"""What ModelSpec metadata call an architecture, in adapters and models alike."""


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
    hid_projection: bool = False
    """Whether the text is projected before cross attention reads it (Kolors)."""


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
        any(key.startswith("encoder_hid_proj.") for key in shapes),
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
        return Architecture(_relative(facts) or UNKNOWN, False)
    if facts.hid_projection and family == "sdxl":
        return Architecture("sdxl-kolors", False)
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


@dataclass(frozen=True, slots=True)
class _Relative:
    """A UNet with blocks left out or added, made from a published one: its layers have the same names."""

    name: str
    attention: tuple[bool, ...]
    layers: int
    depths: tuple[int, ...]
    mid_depth: int
    added: bool = False
    classes: bool = False
    linear: bool | None = None


_RELATIVES = (
    _Relative("sdxl-ssd-1b", (False, True, True), 2, (0, 2, 4), 0, added=True),
    _Relative("sdxl-vega", (False, True, True), 2, (0, 1, 2), 0, added=True),
    _Relative("sdxl-koala-700m", (False, True, True), 1, (0, 2, 5), 0, added=True),
    _Relative("sdxl-koala-1b", (False, True, True), 1, (0, 2, 6), 6, added=True),
    _Relative("sd15-small", (True, True, True, False), 1, (1, 1, 1, 0), 1, linear=False),
    _Relative("sd15-small-without-middle", (True, True, True, False), 1, (1, 1, 1, 0), 0),
    _Relative("sd15-tiny", (True, True, True), 1, (1, 1, 1), 0),
    _Relative("sd2-unclip", (True, True, True, False), 2, (1, 1, 1, 0), 1, classes=True, linear=True),
    _Relative("sd2-upscaler", (False, True, True, True), 2, (0, 1, 1, 1), 1, classes=True, linear=True),
)
"""SSD-1B, Segmind Vega, KOALA; small-sd and tiny-sd (BK-SDM); SD2 from pictures, and the upscaler."""


def _relative(facts: UNetFacts) -> str | None:
    """The name of a UNet that is a published one with blocks left out or added; None if it is none."""
    for known in _RELATIVES:
        blocks = standard_structure(known.attention, known.layers)
        same = (facts.structure.down, facts.structure.up) == (blocks.down, blocks.up)
        if (
            same
            and (facts.depths, facts.mid_depth) == (known.depths, known.mid_depth)
            and (facts.added is not None) == known.added
            and facts.class_embedding == known.classes
            and known.linear in (None, facts.linear_projection)
        ):
            return known.name
    return None


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
