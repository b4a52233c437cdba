"""The facts in a UNet's keys and shapes, and the traits by which an architecture is told.

Widths alone decide nothing: a scaled-down model with SD1.5's blocks is structurally ``sd15``. Architectures
differ in the levels that have transformers, the depth of these, the projection of their input and the
additions to the time embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from paramerge.models.unet_structure import UNetStructure, infer_structure


@dataclass(frozen=True, slots=True)
class UNetFacts:
    """The facts in the keys and shapes of a UNet."""

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

    @property
    def widths(self) -> tuple[tuple[int, ...], int | None, int | None]:
        """The widths that adapters meet: of the levels, of the text, of the micro-conditioning."""
        return self.channels, self.context, self.added


@dataclass(frozen=True, slots=True)
class UNetTraits:
    """The blocks of one architecture's UNet; a trait that is None does not matter."""

    structure: UNetStructure
    depths: tuple[int, ...]
    mid_depth: int
    added: bool = False
    """Whether there is micro-conditioning."""
    classes: bool = False
    linear: bool | None = None
    """Whether transformers project their input with Linear layers, not with convolutions."""
    projected: bool | None = None
    """Whether the text is projected before cross attention reads it."""
    widths: tuple[tuple[int, ...], int | None, int | None] | None = None
    """The published :attr:`UNetFacts.widths`, which decide nothing."""

    def are_of(self, facts: UNetFacts) -> bool:
        """Whether a UNet of these facts has these blocks."""
        return (
            (facts.structure.down, facts.structure.up) == (self.structure.down, self.structure.up)
            and (facts.depths, facts.mid_depth) == (self.depths, self.mid_depth)
            and (facts.added is not None) == self.added
            and facts.class_embedding == self.classes
            and self.linear in (None, bool(facts.linear_projection))
            and self.projected in (None, facts.hid_projection)
        )


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
