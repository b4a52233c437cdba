"""Stable Diffusion 3 and 3.5, recognised by their keys; layers go by the names that the file has."""

from __future__ import annotations

from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.resemblance import DIFFUSION_TRANSFORMER, T5_ENCODER, Resemblance

RECORDS = (
    ArchitectureRecord(
        "sd3",
        label="Stable Diffusion 3",
        patterns=(r"joint_blocks\.\d+\.|\btransformer_blocks\.\d+\.norm1_context\.", r"\bpos_embed\b"),
        resembles=(
            Resemblance("Stable Diffusion 3", r"joint_blocks[._]\d+[._]"),
            DIFFUSION_TRANSFORMER,
            T5_ENCODER,
        ),
        modelspec_read=("stable-diffusion-3",),
        kohya=KohyaNames(also=("sd3",)),
    ),
)
