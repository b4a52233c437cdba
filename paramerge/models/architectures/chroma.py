"""Chroma, made from FLUX.1 and recognised by its keys; its layers go by the names that its file has."""

from __future__ import annotations

from paramerge.models.record import ArchitectureRecord
from paramerge.models.resemblance import DIFFUSION_TRANSFORMER, FLUX_LIKE, T5_ENCODER

RECORDS = (
    ArchitectureRecord(
        "chroma",
        label="Chroma",
        patterns=(
            r"distilled_guidance_layer\.",
            r"\b(double|transformer)_blocks\.\d+\.(img_)?attn\.",
        ),
        resembles=(FLUX_LIKE, DIFFUSION_TRANSFORMER, T5_ENCODER),
    ),
)
