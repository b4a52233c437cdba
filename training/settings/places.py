"""Settings of where things are: the model, the pictures, the output."""

# ruff: noqa: RUF009  (option makes a field)

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from paramerge.errors import UsageError
from paramerge.training.settings.option import option

__all__ = ["PlaceSettings"]


@dataclass(frozen=True, kw_only=True)
class PlaceSettings:
    """Inputs of a run, and its output."""

    model: Path = option(
        MISSING,
        "Diffusers folder or single file of SD1.5 or SDXL, a folder of FLUX.1, SD3 or Z-Image, or "
        "emoji-diffusion, which ships.",
    )
    vae: Path | None = option(None, "Another autoencoder: a diffusers folder or a single file.")
    instance_folder: Path | None = option(None, "The subject's pictures.")
    instance_prompt: str = option(
        "", "What they show, such as 'a photo of sks dog'; texts beside the pictures win."
    )
    dataset: Path | None = option(
        None, "TOML of several subjects in place of these: [[subject]] tables of folder, prompt, repeats."
    )
    output: Path = option(MISSING, "Folder for the adapter, checkpoints, samples and the log.")

    def check_places(self) -> None:
        """Refuse a run without pictures, or with two lists of them, with a UsageError."""
        if self.dataset is None:
            missing = [n for n in ("instance_folder", "instance_prompt") if not getattr(self, n)]
            if missing:
                raise UsageError(
                    "settings are missing",
                    where=missing[0],
                    expected=f"{' and '.join(missing)}, or a dataset",
                    hint="say where the pictures are and what they show",
                )
        elif self.instance_folder is not None or self.instance_prompt:
            raise UsageError(
                "there are two lists of pictures",
                where="dataset",
                expected="a dataset, or instance_folder and instance_prompt",
                found="both",
            )
