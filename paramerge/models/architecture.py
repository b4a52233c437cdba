"""The architecture of a UNet, from its blocks; and whether its widths are the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paramerge.models.registry import records
from paramerge.models.unet_facts import UNetFacts, unet_facts

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture's name and whether all widths that adapters meet are those of the published model."""

    name: str
    """``sd15``, ``sd2``, ``sdxl``, ``sdxl-refiner``, one of these with ``-inpainting`` ..., ``unknown``."""
    true_dimensions: bool


def detect_architecture(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """The architecture of a UNet, given its keys (diffusers' names) and shapes.

    Raises
    ------
    CheckpointError
        Blocks are missing.
    """
    facts = unet_facts(shapes)
    for record in records():
        if record.unet is not None and record.unet.are_of(facts):
            suffix = _input_suffix(facts, record.inputs) if record.inputs else ""
            return Architecture(record.name + suffix, record.unet.widths == facts.widths)
    return Architecture(UNKNOWN, False)


def _input_suffix(facts: UNetFacts, inputs: Mapping[int, str]) -> str:
    """The suffix for inputs beyond latents of 4 channels; latents of another width are named by it."""
    if facts.out_channels == facts.in_channels != 4:
        return f"-{facts.in_channels}-channels"
    return inputs.get(facts.in_channels, f"-{facts.in_channels}-channels")
