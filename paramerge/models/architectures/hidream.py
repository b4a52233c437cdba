"""HiDream: its layers are called the same in both layouts."""

from __future__ import annotations

from paramerge.models.record import ArchitectureRecord

RECORDS = (
    ArchitectureRecord(
        "hidream",
        label="HiDream",
        patterns=(r"\bdouble_stream_blocks\.\d+\.block\.attn1\.",),
        same_names=True,
        modelspec_read=("hidream",),
    ),
)
