"""The common part of the records of Stable Diffusion's UNets: most of each follows from its blueprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from paramerge.models.blueprint import Blueprint
from paramerge.models.clip_keys import EncoderPrefix
from paramerge.models.record import ArchitectureRecord
from paramerge.models.resemblance import STABLE_DIFFUSION
from paramerge.models.unet_blocks import unet_blocks
from paramerge.models.unet_facts import UNetTraits

INPUTS: Mapping[int, str] = {4: "", 9: "-inpainting", 8: "-pix2pix", 5: "-depth"}
"""Suffixes of variants by the channels that go in: latents of 4, and more."""


def stable_diffusion(
    blueprint: Blueprint,
    *,
    vectors: Iterable[int],
    projected: bool | None = None,
    **facts: Any,
) -> ArchitectureRecord:
    """The record of a published UNet.

    Parameters
    ----------
    vectors:
        The lengths of its vectors of block weights.
    projected:
        Whether its text is projected before cross attention reads it; None if that does not matter.
    facts:
        Other fields of the record.
    """
    unet = blueprint.unet
    added = unet.pooled + unet.time_ids * unet.time_id_width or None
    label = "add_embedding" if unet.time_ids else "class_embedding"
    ldm = replace(unet.structure, label=label)
    traits = UNetTraits(
        unet.structure,
        unet.depths,
        unet.mid_depth,
        added=unet.time_ids > 0,
        linear=unet.linear_projection,
        projected=projected,
        widths=(unet.channels, unet.context, added),
    )
    given: dict[str, Any] = {
        "component": "unet",
        "unet": traits,
        "inputs": INPUTS,
        "encoders": tuple(
            EncoderPrefix(encoder.prefix, encoder.component, encoder.config.openclip)
            for encoder in blueprint.encoders
        ),
        "ldm": ldm,
        "blocks": unet_blocks(ldm, vectors),
        "published": lambda: blueprint,
        "context_width": unet.context,
        "resembles": (STABLE_DIFFUSION,),
    }
    return ArchitectureRecord(blueprint.architecture, **given | facts)
