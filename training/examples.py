"""The pictures as the model takes them: latents, worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paramerge.generation.latents import scaled
from paramerge.training.config import TrainConfig
from paramerge.training.pictures import (
    CAPTION_SUFFIX,
    Picture,
    captions_of,
    data_hash,
    find_pictures,
    read_picture,
)

__all__ = ["Examples", "Latents", "load_examples"]


@dataclass(frozen=True)
class Latents:
    """One kind of pictures, encoded: means and deviations (n, c, h, w), scaled as the UNet has them, and
    SDXL's time ids (n, 6).

    With flips, entry ``count + i`` is picture i mirrored. ``captions`` say what each shows; empty where the
    prompt says it for all.
    """

    mean: Tensor
    deviation: Tensor
    time_ids: Tensor
    count: int
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examples:
    """The subject's pictures, and those of its class for prior preservation."""

    instance: Latents
    prior: Latents | None
    data_sha256: str


def load_examples(pipeline: Any, config: TrainConfig, device: Any) -> Examples:
    """Read and encode all pictures; in float32, as SDXL's autoencoder overflows in half precision.

    Raises
    ------
    UsageError
        A folder is missing or empty, or only some of the subject's pictures have captions.
    FileFormatError
        A picture or a caption is damaged.
    """
    side = config.resolution or int(pipeline.unet.config.sample_size * pipeline.vae_scale_factor)
    files = find_pictures(config.instance_folder, "instance_folder")
    captions = captions_of(files)
    instance = _encode(pipeline, [read_picture(path, side) for path in files], side, captions, config, device)
    prior = None
    if config.class_folder is not None:
        more = find_pictures(config.class_folder, "class_folder")[: config.class_images]
        prior = _encode(pipeline, [read_picture(path, side) for path in more], side, (), config, device)
        files = files + more
    texts = [path.with_suffix(CAPTION_SUFFIX) for path in files[: len(captions)]]
    return Examples(instance, prior, data_hash([*files, *texts]))


@torch.no_grad()
def _encode(
    pipeline: Any,
    pictures: Sequence[Picture],
    side: int,
    captions: tuple[str, ...],
    config: TrainConfig,
    device: Any,
) -> Latents:
    means, deviations = [], []
    flips = (False, True) if config.random_flip else (False,)
    vae = pipeline.vae
    for flip in flips:
        for picture in pictures:
            pixels = torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            pixels = pixels.flip(-1) if flip else pixels
            found = vae.encode(pixels.to(device)).latent_dist
            means.append(scaled(vae.config, found.mean).cpu())
            deviations.append(scaled(vae.config, found.std, deviation=True).cpu())
    ids = [[*picture.size, *picture.corner, side, side] for picture in pictures] * len(flips)
    form = torch.tensor(ids).float()
    return Latents(torch.cat(means), torch.cat(deviations), form, len(pictures), captions)
