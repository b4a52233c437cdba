"""Qwen-Image, recognised by its keys; its layers go by the names that its file has."""

from __future__ import annotations

from paramerge.models.record import ArchitectureRecord
from paramerge.models.resemblance import DIFFUSION_TRANSFORMER, Resemblance

RECORDS = (
    ArchitectureRecord(
        "qwen-image",
        label="Qwen-Image",
        patterns=(r"transformer_blocks\.\d+\.img_mod\.", r"\bimg_in\."),
        resembles=(
            Resemblance("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mod|mlp)[._]"),
            DIFFUSION_TRANSFORMER,
        ),
    ),
)
