"""Another autoencoder in the place of the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paramerge.errors import CheckpointError
from paramerge.files.header import read_header

__all__ = ["autoencoder_from"]


def autoencoder_from(place: Path, own: Any) -> Any:
    """The autoencoder in a diffusers folder (its own, or a pipeline's ``vae``) or a single file, in float32.

    ``own`` is the model's, whose class it has, and whose latents' channels it must have.

    Raises
    ------
    FileFormatError
        It is a file, and no safetensors.
    CheckpointError
        It cannot be loaded, or has other latents.
    """
    kind = type(own)
    try:
        if not place.is_dir():
            read_header(place)  # a pickle is refused unopened, and a pipe is not waited for
            made = kind.from_single_file(str(place), torch_dtype=torch.float32)
        else:
            part = {"subfolder": "vae"} if (place / "vae").is_dir() else {}
            made = kind.from_pretrained(
                str(place), torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, **part
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"diffusers cannot load this autoencoder ({reason})", where=place) from error
    if made.config.latent_channels != own.config.latent_channels:
        raise CheckpointError(
            "this autoencoder has other latents than the model's",
            where=place,
            expected=f"{own.config.latent_channels} channels",
            found=made.config.latent_channels,
        )
    return made.eval()
