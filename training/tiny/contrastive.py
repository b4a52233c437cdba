"""The contrastive text-image model, which learns from the same scenes to match captions and pictures.

It is a stand-in for CLIP where CLIP's weights cannot be had; its scores must be labelled as its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CLIPImageProcessor

from paramerge.training.tiny.autoencoder import to_unit
from paramerge.training.tiny.libraries import CLIPModel, CLIPTokenizer
from paramerge.training.tiny.models import token_ids
from paramerge.training.tiny.pictures import SIZE
from paramerge.training.tiny.scenes import Composer, Scene, SceneMix, draw_scene, random_generator
from paramerge.training.tiny.split import Split

__all__ = ["ContrastivePart", "embed_pictures", "embed_texts", "picture_processor", "unlike_scenes"]

_CHUNK = 64
_ATTEMPTS = 20
_NOISE = 0.05


def unlike_scenes(split: Split, rng: np.random.Generator, count: int, mix: SceneMix) -> list[Scene]:
    """Scenes with different captions, ``count`` or as many as random draws find."""
    scenes: dict[str, Scene] = {}
    for _ in range(_ATTEMPTS * count):
        scene = draw_scene(split, rng, mix)
        scenes.setdefault(scene.caption, scene)
        if len(scenes) == count:
            break
    return list(scenes.values())


class ContrastivePart:
    """Each picture of a batch against all its captions, and the other way round (CLIP's loss)."""

    name = "contrastive"

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        composer: Composer,
        split: Split,
        seed: int,
        batch: int,
        device: torch.device,
    ) -> None:
        self.model: nn.Module = model.to(device)
        width = model.config.projection_dim
        self.identity = f"contrastive seed={seed} batch={batch} known={len(split.known)} {width}"
        self._tokenizer, self._composer, self._split = tokenizer, composer, split
        self._seed, self._batch, self._device = seed, batch, device

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        """The cross entropy of both directions."""
        rng = random_generator(self._seed, self.name, step)
        # white goes without saying here: the same picture must not have two captions in a batch
        scenes = unlike_scenes(self._split, rng, self._batch, SceneMix(white_said=0.0))
        pictures = to_unit(self._composer.compose_all(scenes))
        # generated pictures are never as clean as composed ones
        pictures += float(rng.uniform(0, _NOISE)) * torch.from_numpy(
            rng.standard_normal(pictures.shape, dtype=np.float32)
        )
        tokens = token_ids(self._tokenizer, [scene.caption for scene in scenes])
        result = model(
            input_ids=tokens.to(self._device), pixel_values=pictures.to(self._device), return_loss=True
        )
        loss: torch.Tensor = result.loss
        return loss


def picture_processor() -> Any:
    """The processor of pictures for the model, which is expected beside its weights.

    Pictures of :data:`~paramerge.training.tiny.pictures.SIZE` go in as they are, from -1 to 1; others are
    scaled.
    """
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=half,
        image_std=half,
    )


def embed_pictures(model: CLIPModel, pictures: np.ndarray) -> torch.Tensor:
    """Unit vectors (n, d) of uint8 pictures (n, 3, 64, 64)."""
    found = []
    with torch.no_grad():
        for start in range(0, len(pictures), _CHUNK):
            values = to_unit(pictures[start : start + _CHUNK]).to(model.device)
            vision = model.vision_model(pixel_values=values).pooler_output
            found.append(model.visual_projection(vision))
    return nn.functional.normalize(torch.cat(found), dim=-1)


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Unit vectors (n, d) of captions."""
    with torch.no_grad():
        text = model.text_model(input_ids=token_ids(tokenizer, captions).to(model.device)).pooler_output
        return nn.functional.normalize(model.text_projection(text), dim=-1)
