"""The pictures as the model takes them: latents, worked out once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramerge.errors import UsageError
from paramerge.files.hashing import file_sha256
from paramerge.generation.latents import scaled
from paramerge.regular_files import is_there
from paramerge.training.buckets import Size, nearest_size, sizes_for
from paramerge.training.chance import generator
from paramerge.training.config import TrainConfig
from paramerge.training.kept import Kept, weights_sha256
from paramerge.training.models import kind_of
from paramerge.training.pictures import (
    CAPTION_SUFFIX,
    CENTRE,
    Picture,
    captions_of,
    cut,
    data_hash,
    find_pictures,
    mask_of,
    open_picture,
)
from paramerge.training.sources import Source, sources_of

__all__ = ["Examples", "Latents", "load_examples"]


@dataclass(frozen=True)
class Latents:
    """Pictures of one size, encoded: means and deviations (n, c, h, w), scaled as the model has them, and
    SDXL's time ids (n, 6).

    Entry ``v count + i`` is picture i in its version v, of cuts and flips. ``captions`` say what each shows;
    empty where the prompt says it for all. ``order`` is the pictures of a round, each as often as its folder
    is repeated; empty for each once. ``mask`` (n, 1, h, w) is how much each place counts, or None.
    """

    mean: Tensor
    deviation: Tensor
    time_ids: Tensor
    count: int
    captions: tuple[str, ...] = ()
    order: tuple[int, ...] = ()
    mask: Tensor | None = None

    @property
    def round(self) -> tuple[int, ...]:
        """The pictures of a round."""
        return self.order or tuple(range(self.count))


@dataclass(frozen=True)
class Examples:
    """The subjects' pictures, those of their class for prior preservation, and those held out; by size."""

    instance: tuple[Latents, ...]
    prior: tuple[Latents, ...]
    data_sha256: str
    held_out: tuple[Latents, ...] = ()


@dataclass(frozen=True)
class _File:
    """One picture on disk, and how it is used."""

    path: Path
    caption: str | None
    repeats: int = 1


def load_examples(pipeline: Any, config: TrainConfig, device: Any) -> Examples:
    """Read and encode all pictures; in float32, as SDXL's autoencoder overflows in half precision.

    Raises
    ------
    UsageError
        A folder is missing or empty, or only some of the subject's pictures have captions.
    FileFormatError
        A picture, a mask or a caption is damaged.
    """
    encoder = _Encoder(pipeline, config, device)
    sources = sources_of(config)
    files = [file for source in sources for file in _files(source, config, config.dataset is not None)]
    instance = encoder.encode(files, mask=config.mask)
    paths = [file.path for file in files]
    texts = [path.with_suffix(CAPTION_SUFFIX) for path in paths]
    masks = [mask_of(path) for path in paths] if config.mask == "files" else []
    prior: tuple[Latents, ...] = ()
    if config.class_folder is not None:
        more = find_pictures(config.class_folder, "class_folder")[: config.class_images]
        prior = encoder.encode([_File(path, None) for path in more])
        paths += more
    held_out: tuple[Latents, ...] = ()
    if config.held_out is not None:
        found = _files(Source(config.held_out, sources[0].prompt), config, False, "held_out")
        held_out = encoder.encode(found, versions=False)
    digest = data_hash([*paths, *(text for text in texts if is_there(text)), *masks])
    if config.dataset is not None:
        used = [[source.prompt, source.repeats] for source in sources]
        digest = hashlib.sha256(f"{digest} {json.dumps(used)}".encode()).hexdigest()
    return Examples(instance, prior, digest, held_out)


def _files(
    source: Source, config: TrainConfig, several: bool, option: str = "instance_folder"
) -> list[_File]:
    paths = find_pictures(source.folder, option if config.dataset is None else str(config.dataset))
    captions = captions_of(paths)
    own = captions or ((source.prompt,) if several else (None,)) * len(paths)
    return [_File(path, text, source.repeats) for path, text in zip(paths, own, strict=True)]


_Entry = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Mean, deviation, time ids and mask of one version of a picture, each with a first axis of 1."""


class _Encoder:
    """From files to latents, by the pipeline's autoencoder."""

    def __init__(self, pipeline: Any, config: TrainConfig, device: Any) -> None:
        self._pipeline, self._config, self._device = pipeline, config, device
        self._kept = Kept(config.cache)
        self._weights = weights_sha256([pipeline.vae]) if self._kept.is_on else ""
        side = config.resolution or _side_of(pipeline)
        step = kind_of(pipeline).side_step
        if side % step or (config.buckets and config.bucket_step % step):
            name, found = ("resolution", side) if side % step else ("bucket_step", config.bucket_step)
            raise UsageError(
                "pictures cannot have this size", where=name, expected=f"a multiple of {step}", found=found
            )
        self._sizes = sizes_for(side, config.bucket_step) if config.buckets else ((side, side),)

    def encode(
        self, files: Sequence[_File], *, mask: str = "none", versions: bool = True
    ) -> tuple[Latents, ...]:
        """The files by the size that each is cut to, in the order of the sizes."""
        by_size: dict[Size, list[_File]] = {}
        for file in files:
            size = self._sizes[0]
            if len(self._sizes) > 1:
                size = nearest_size(open_picture(file.path).size, self._sizes)
            by_size.setdefault(size, []).append(file)
        return tuple(self._of_one_size(by_size[size], size, mask, versions) for size in sorted(by_size))

    def _of_one_size(self, files: Sequence[_File], size: Size, mask: str, versions: bool) -> Latents:
        flips = (False, True) if versions and self._config.random_flip else (False,)
        kinds = [(number, flip) for number in range(self._config.crops if versions else 1) for flip in flips]
        by_version: list[list[_Entry]] = [[] for _ in kinds]
        for file in files:
            whole, digest = open_picture(file.path, mask), file_sha256(file.path)
            for entries, (number, flip) in zip(by_version, kinds, strict=True):
                picture = cut(whole, size, self._place(digest, number))
                found = self._latents(picture, flip)
                ids = torch.tensor([[*picture.size, *picture.corner, *size]]).float()
                entries.append(
                    (found["mean"], found["deviation"], ids, _small_mask(picture, found["mean"], flip))
                )
        means, deviations, ids_of_all, masks = zip(
            *(e for entries in by_version for e in entries), strict=True
        )
        captions = tuple(file.caption for file in files if file.caption is not None)
        order = tuple(i for i, file in enumerate(files) for _ in range(file.repeats))
        return Latents(
            torch.cat(means),
            torch.cat(deviations),
            torch.cat(ids_of_all),
            len(files),
            captions,
            order if len(order) > len(files) else (),
            None if mask == "none" else torch.cat([each for each in masks if each is not None]),
        )

    def _place(self, digest: str, number: int) -> tuple[float, float]:
        """The cut's place: the middle, or by the seed, the picture's content and the number of the cut."""
        if self._config.crop == "centre":
            return CENTRE
        found = torch.rand(2, generator=generator(self._config.seed, digest, number, "cut")).tolist()
        return found[0], found[1]

    @torch.no_grad()
    def _latents(self, picture: Picture, flip: bool) -> dict[str, Tensor]:
        vae = self._pipeline.vae

        def make() -> dict[str, Tensor]:
            pixels = torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            pixels = pixels.flip(-1) if flip else pixels
            found = vae.encode(pixels.to(self._device)).latent_dist
            return {
                "mean": scaled(vae.config, found.mean),
                "deviation": scaled(vae.config, found.std, deviation=True),
            }

        pixels = np.ascontiguousarray(picture.pixels)
        facts = {
            "picture": hashlib.sha256(pixels.data).hexdigest() if self._kept.is_on else "",
            "size": list(pixels.shape),
            "flip": flip,
            "weights": self._weights,
            "device": torch.device(self._device).type,
        }
        return self._kept.get(facts, make)


def _small_mask(picture: Picture, latents: Tensor, flip: bool) -> Tensor | None:
    """The mask (1, 1, h, w) of latents: the mean over the pixels of each place, from 0 to 1."""
    if picture.mask is None:
        return None
    whole = torch.from_numpy(picture.mask.copy())[None, None].float() / 255
    whole = whole.flip(-1) if flip else whole
    found = torch.nn.functional.interpolate(whole, latents.shape[-2:], mode="area")
    if not bool((found > 0).any()):
        raise UsageError(
            "a cut leaves nothing of a mask", where="crop", expected="masks with something in each cut"
        )
    return found


def _side_of(pipeline: Any) -> int:
    unet = getattr(pipeline, "unet", None)
    cells = getattr(pipeline, "default_sample_size", 128) if unet is None else unet.config.sample_size
    return int(cells * pipeline.vae_scale_factor)
