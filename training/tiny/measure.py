"""The measurements of the model card, on pictures and compositions that were held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paramerge.training.tiny.contrastive import unlike_scenes
from paramerge.training.tiny.libraries import CLIPModel, CLIPTokenizer, StableDiffusionPipeline
from paramerge.training.tiny.quality import (
    Recognition,
    generate,
    psnr,
    recognition,
    reconstruct,
    retrieval,
)
from paramerge.training.tiny.scenes import Composer, Scene, SceneMix, random_generator, single
from paramerge.training.tiny.settings import Settings
from paramerge.training.tiny.split import Split

__all__ = ["Measured", "Samples", "measure"]

_SAMPLE_ROWS, _SAMPLE_COLUMNS = 8, 12


@dataclass(frozen=True, slots=True)
class Samples:
    """Pictures to look at: the model's (n, 3, 64, 64) for ``captions``, side by side in rows."""

    pictures: np.ndarray
    captions: tuple[str, ...]
    columns: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The card's numbers; recognition and retrieval are the contrastive model's own word."""

    autoencoder_training: float
    """PSNR in dB on the pictures trained on."""
    autoencoder_held_out: float
    """PSNR in dB on pictures of unseen subjects and missing styles."""
    retrieval_new_scenes: float
    """The share of new compositions whose caption is found among all of them."""
    retrieval_held_out: float
    """The same for held-out pairs of a known subject and a style."""
    compared: tuple[int, int]
    """Number of captions that these two were among."""
    real: Recognition
    generated: Recognition
    recognised: int
    """Number of pairs of subject and style in the two recognitions."""
    samples: Samples


def measure(
    pipeline: StableDiffusionPipeline,
    contrastive: CLIPModel,
    tokenizer: CLIPTokenizer,
    composer: Composer,
    split: Split,
    settings: Settings,
) -> Measured:
    """Take all measurements; deterministic by the settings' seed."""
    known = _sample([single(*pair) for pair in split.training], settings)
    missing = [single(s, style) for s in split.known for style in _missing(split, s.name)]
    held_out = [single(*pair) for pair in split.held_out][: settings.measured]
    rng = random_generator(settings.seed, "measure")
    new = unlike_scenes(split, rng, settings.measured, SceneMix(white_said=0.0))
    real = composer.compose_all(known)
    drawn = generate(
        pipeline,
        [scene.caption for scene in known],
        settings.seed,
        settings.sampling_steps,
        settings.guidance,
    )
    return Measured(
        autoencoder_training=_psnr(pipeline, real),
        autoencoder_held_out=_psnr(pipeline, composer.compose_all(held_out)),
        retrieval_new_scenes=_retrieval(contrastive, tokenizer, composer, new),
        retrieval_held_out=_retrieval(contrastive, tokenizer, composer, missing),
        compared=(len(new), len(missing)),
        real=recognition(contrastive, tokenizer, real, known),
        generated=recognition(contrastive, tokenizer, drawn, known),
        recognised=len(known),
        samples=_samples(pipeline, split, settings),
    )


def _sample(scenes: list[Scene], settings: Settings) -> list[Scene]:
    """At most as many as are to be measured, spread evenly."""
    stride = -(-len(scenes) // settings.measured)
    return scenes[::stride]


def _missing(split: Split, name: str) -> list[str]:
    return [style for subject, style in split.missing if subject == name]


def _psnr(pipeline: StableDiffusionPipeline, pictures: np.ndarray) -> float:
    return psnr(pictures, reconstruct(pipeline.vae, pictures))


def _retrieval(
    contrastive: CLIPModel, tokenizer: CLIPTokenizer, composer: Composer, scenes: Sequence[Scene]
) -> float:
    captions = [scene.caption for scene in scenes]
    return retrieval(contrastive, tokenizer, composer.compose_all(scenes), captions)


def _samples(pipeline: StableDiffusionPipeline, split: Split, settings: Settings) -> Samples:
    """Rows of the first subjects on white, one in each style, then rows of new compositions."""
    count = min(_SAMPLE_COLUMNS, len(split.known), settings.measured)
    plain = [split.known[i * len(split.known) // count] for i in range(count)]
    styles = [split.styles_of(subject) for subject in plain]
    scenes = [
        single(s, its[row % len(its)]) for row in range(3) for s, its in zip(plain, styles, strict=True)
    ]
    rows = min(_SAMPLE_ROWS, settings.measured // (3 * count)) - 3
    rng = random_generator(settings.seed, "samples")
    scenes += unlike_scenes(split, rng, max(1, rows) * count, SceneMix(white=0.2, white_said=0.0))
    captions = tuple(scene.caption for scene in scenes)
    pictures = generate(
        pipeline, captions, settings.seed + 1_000_000, settings.sampling_steps, settings.guidance
    )
    return Samples(pictures, captions, count)
