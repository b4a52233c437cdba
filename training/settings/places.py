"""Settings of where things are: the model, the pictures, the output."""

# ruff: noqa: RUF009  (option makes a field)

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from paramerge.training.settings.option import option

__all__ = ["PlaceSettings"]


@dataclass(frozen=True, kw_only=True)
class PlaceSettings:
    """Inputs of a run, and its output."""

    model: Path = option(
        MISSING, "Diffusers folder or single file of SD1.5 or SDXL, or emoji-diffusion, which ships."
    )
    instance_folder: Path = option(MISSING, "The subject's pictures.")
    instance_prompt: str = option(
        MISSING, "What they show, such as 'a photo of sks dog'; texts beside the pictures win."
    )
    output: Path = option(MISSING, "Folder for the adapter, checkpoints, samples and the log.")
