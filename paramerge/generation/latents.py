"""Between an autoencoder's numbers and those that a diffusion model is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def scaled(config: Any, z: Tensor, *, deviation: bool = False) -> Tensor:
    """An autoencoder's latents (n, c, h, w) as the diffusion model has them, by the autoencoder's ``config``.

    ``(z - mean) s / std`` with the statistics of each channel where the configuration has these, else
    ``(z - shift) s``; for a ``deviation`` of latents the factor alone.
    """
    mean, std, factor = _statistics(config, z)
    centred = z if deviation else z - mean
    result: Tensor = centred * factor / std if torch.is_tensor(std) else centred * factor
    return result


def unscaled(config: Any, latents: Tensor) -> Tensor:
    """The inverse of :func:`scaled`: latents for the autoencoder to decode."""
    mean, std, factor = _statistics(config, latents)
    result: Tensor = latents * std / factor + mean if torch.is_tensor(std) else latents / factor + mean
    return result


def _statistics(config: Any, like: Tensor) -> tuple[Any, Any, float]:
    mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
    factor = float(config.scaling_factor)
    if mean is None or std is None:
        return getattr(config, "shift_factor", None) or 0.0, 1.0, factor
    return like.new_tensor(mean).view(-1, 1, 1), like.new_tensor(std).view(-1, 1, 1), factor


@torch.no_grad()
def decoded(pipeline: Any, latents: Tensor) -> np.ndarray:
    """Pictures (n, height, width, 3) from 0 to 1, decoded in the autoencoder's dtype, without autocast.

    Half precision overflows in SDXL's autoencoder.
    """
    vae = pipeline.vae
    with torch.autocast(latents.device.type, enabled=False):
        pixels = vae.decode(unscaled(vae.config, latents.to(vae.dtype)), return_dict=False)[0]
    pictures: np.ndarray = pipeline.image_processor.postprocess(pixels, output_type="np")
    return pictures
