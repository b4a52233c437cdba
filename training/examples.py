"""The pictures and prompts as the model takes them: latents and text embeddings, worked out once.

A slot is one place in a step's whole batch, counted over all processes; what it holds depends on the seed,
the step and the slot alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paramerge.shipped import named_model
from paramerge.training.chance import generator, permutation
from paramerge.training.config import TrainConfig
from paramerge.training.pictures import (
    CAPTION_SUFFIX,
    PICTURE_SUFFIXES,
    Picture,
    captions_of,
    data_hash,
    find_pictures,
    read_picture,
)

__all__ = [
    "Batch",
    "Examples",
    "Prompts",
    "draw_missing_class_pictures",
    "load_examples",
    "make_batch",
    "prepare_prompts",
]


@dataclass(frozen=True)
class Latents:
    """One kind of pictures, encoded: means and deviations (n, c, h, w), and SDXL's time ids (n, 6).

    With flips, entry ``n + i`` is picture i mirrored.
    """

    mean: Tensor
    deviation: Tensor
    time_ids: Tensor
    count: int


@dataclass(frozen=True)
class Examples:
    """The subject's pictures, and those of its class for prior preservation."""

    instance: Latents
    prior: Latents | None
    scaling: float
    data_sha256: str
    captions: tuple[str, ...] = ()
    """The captions of the subject's pictures; empty where the instance prompt is for all."""


@dataclass(frozen=True)
class Batch:
    """The slots of one forward pass; the class's come after the subject's."""

    latents: Tensor
    """(n, c, h, w), scaled as the UNet has them."""
    noise: Tensor
    timesteps: Tensor
    prompts: Tensor
    """(n,), 0 for the instance prompt, 1 for the class prompt, 2 + i for the caption of picture i."""
    time_ids: Tensor


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
    instance = _encode(pipeline, [read_picture(path, side) for path in files], side, config, device)
    prior = None
    if config.class_folder is not None:
        more = find_pictures(config.class_folder, "class_folder")[: config.class_images]
        prior = _encode(pipeline, [read_picture(path, side) for path in more], side, config, device)
        files = files + more
    texts = [path.with_suffix(CAPTION_SUFFIX) for path in files[: len(captions)]]
    digest = data_hash([*files, *texts])
    return Examples(instance, prior, float(pipeline.vae.config.scaling_factor), digest, captions)


@torch.no_grad()
def _encode(
    pipeline: Any, pictures: Sequence[Picture], side: int, config: TrainConfig, device: Any
) -> Latents:
    means, deviations = [], []
    flips = (False, True) if config.random_flip else (False,)
    for flip in flips:
        for picture in pictures:
            pixels = torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            pixels = pixels.flip(-1) if flip else pixels
            found = pipeline.vae.encode(pixels.to(device)).latent_dist
            means.append(found.mean.cpu())
            deviations.append(found.std.cpu())
    ids = [[*picture.size, *picture.corner, side, side] for picture in pictures] * len(flips)
    return Latents(torch.cat(means), torch.cat(deviations), torch.tensor(ids).float(), len(pictures))


def make_batch(
    examples: Examples, config: TrainConfig, step: int, slots: Sequence[int], total: int, timesteps: int
) -> Batch:
    """The batch of ``slots`` in ``step``, of ``total`` in all; ``timesteps`` is how many the model knows."""
    kinds = [(0, examples.instance)] + ([(1, examples.prior)] if examples.prior else [])
    latents, noise, times, prompts, ids = [], [], [], [], []
    for kind, encoded in kinds:
        assert encoded is not None  # by construction
        for slot in slots:
            seed = (config.seed, kind, step, slot)
            picture = permutation(encoded.count, step * total + slot, config.seed, kind, "order")
            index = picture
            draw = generator(*seed, "draw")
            if len(encoded.mean) > encoded.count and torch.rand((), generator=draw) < 0.5:
                index += encoded.count
            mean = encoded.mean[index]
            sample = mean + encoded.deviation[index] * torch.randn(mean.shape, generator=draw)
            latents.append(sample * examples.scaling)
            grain = torch.randn(mean.shape, generator=draw)
            if config.noise_offset:
                grain = grain + config.noise_offset * torch.randn(len(mean), 1, 1, generator=draw)
            noise.append(grain)
            times.append(torch.randint(timesteps, (), generator=draw))
            prompts.append(2 + picture if examples.captions and kind == 0 else kind)
            ids.append(encoded.time_ids[index])
    return Batch(
        torch.stack(latents), torch.stack(noise), torch.stack(times), torch.tensor(prompts), torch.stack(ids)
    )


@dataclass(frozen=True)
class Prompts:
    """Embeddings of the instance prompt, the class prompt and the captions: (2 + n, tokens, width).

    ``pooled``, of SDXL's second encoder, is (2 + n, width) or None.
    """

    states: Tensor
    pooled: Tensor | None


def prepare_prompts(pipeline: Any, config: TrainConfig, captions: Sequence[str], device: Any) -> Prompts:
    """Encode all prompts as the pipeline does when it draws; with gradient where encoders are trained."""
    texts = [config.instance_prompt, config.class_prompt, *captions]
    found = pipeline.encode_prompt(
        prompt=texts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return Prompts(found[0], found[2] if len(found) == 4 else None)


def draw_missing_class_pictures(pipeline: Any, config: TrainConfig, folder: Path) -> int:
    """Draw pictures of the class with the model as it is until there are enough; how many were drawn.

    Raises
    ------
    OutputError
        The folder is that of the subject's pictures or of the model, or lies in one of them.
    """
    import numpy as np
    from PIL import Image

    from paramerge.files.outputs import check_output_folder
    from paramerge.files.writer import make_folder, write_bytes
    from paramerge.generation.grid import png
    from paramerge.generation.sampling import Request, draw

    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = config.class_images - sum(Path(name).suffix.lower() in PICTURE_SUFFIXES for name in names)
    if missing <= 0:
        return 0
    check_output_folder(folder, [named_model(config.model), config.instance_folder], files=())
    make_folder(folder)
    free = (number for number in count(len(names)) if f"class-{number:04d}.png" not in names)
    for number in islice(free, missing):
        request = Request(
            (config.class_prompt,),
            seeds=(config.seed * 100_003 + number,),
            steps=config.validation_steps,
            guidance=config.validation_guidance,
            width=config.resolution,
            height=config.resolution,
        )
        picture: np.ndarray = draw(pipeline, request)[0][0]
        image = png(Image.fromarray(picture), {"prompt": config.class_prompt})
        write_bytes(folder / f"class-{number:04d}.png", image)
    return missing
