"""The quality of the parts in numbers; each number of the contrastive model is labelled as its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paramerge.training.tiny.autoencoder import encode
from paramerge.training.tiny.contrastive import embed_pictures, embed_texts
from paramerge.training.tiny.libraries import AutoencoderKL, CLIPModel, CLIPTokenizer, StableDiffusionPipeline
from paramerge.training.tiny.scenes import Scene

__all__ = ["Recognition", "generate", "psnr", "recognition", "reconstruct", "retrieval"]

_CHUNK = 32


def reconstruct(autoencoder: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """uint8 pictures (n, 3, h, w), encoded and decoded."""
    latents = encode(autoencoder, pictures)
    with torch.no_grad():
        drawn = torch.cat([autoencoder.decode(part).sample for part in torch.split(latents, _CHUNK)])
    return _to_bytes(drawn)


def _to_bytes(drawn: torch.Tensor) -> np.ndarray:
    array: np.ndarray = ((drawn.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    return array


def psnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """The mean peak signal-to-noise ratio of uint8 pictures, in dB."""
    errors = ((wanted.astype(np.float64) - found.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255.0**2 / np.maximum(errors, 1e-12))).mean())


def retrieval(
    model: CLIPModel, tokenizer: CLIPTokenizer, pictures: np.ndarray, captions: Sequence[str]
) -> float:
    """The share of pictures whose own caption is the nearest of all ``captions`` (which differ)."""
    scores = embed_pictures(model, pictures) @ embed_texts(model, tokenizer, list(captions)).T
    right = scores.argmax(dim=1) == torch.arange(len(captions), device=scores.device)
    return float(right.float().mean())


@dataclass(frozen=True, slots=True)
class Recognition:
    """The shares of pictures whose subject, and whose style, the contrastive model names rightly."""

    subject: float
    style: float


def recognition(
    model: CLIPModel, tokenizer: CLIPTokenizer, pictures: np.ndarray, scenes: Sequence[Scene]
) -> Recognition:
    """Name each picture by the nearest of the captions of all ``scenes`` (plain ones of one subject)."""
    scores = embed_pictures(model, pictures) @ embed_texts(model, tokenizer, [s.caption for s in scenes]).T
    named = [scenes[i] for i in scores.argmax(dim=1).tolist()]
    pairs = list(zip(named, scenes, strict=True))
    return Recognition(
        float(np.mean([found.subjects == wanted.subjects for found, wanted in pairs])),
        float(np.mean([found.style == wanted.style for found, wanted in pairs])),
    )


def generate(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seed: int, steps: int, guidance: float
) -> np.ndarray:
    """A picture for each prompt, uint8 (n, 3, 64, 64), each from its own seed: ``seed`` plus its place."""
    pipeline.set_progress_bar_config(disable=True)
    found = []
    for start in range(0, len(prompts), _CHUNK):
        part = list(prompts[start : start + _CHUNK])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        images = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        ).images
        found.append(np.rint(images * 255).astype(np.uint8).transpose(0, 3, 1, 2))
    return np.concatenate(found)
