"""Wan, recognised by its keys; its layers go by the names that its file has."""

from __future__ import annotations

from paramerge.models.record import ArchitectureRecord
from paramerge.models.resemblance import VIDEO_TRANSFORMER

RECORDS = (
    ArchitectureRecord(
        "wan",
        label="Wan",
        patterns=(r"blocks\.\d+\.(self_attn\.norm_q|attn1\.norm_q)\.", r"patch_embedding\."),
        resembles=(VIDEO_TRANSFORMER,),
    ),
)
