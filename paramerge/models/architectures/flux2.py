"""FLUX.2, recognised by its keys; its layers go by the names that its file has."""

from __future__ import annotations

from paramerge.models.record import ArchitectureRecord

RECORDS = (
    ArchitectureRecord("flux2", label="FLUX.2", patterns=(r"double_stream_modulation_img\.lin(ear)?\.",)),
)
