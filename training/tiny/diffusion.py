"""The text-to-image part: the denoiser and its text encoder, trained together on latents made once."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.nn import functional

from paramerge.training.chance import generator as torch_generator
from paramerge.training.tiny.autoencoder import encode
from paramerge.training.tiny.libraries import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDIMScheduler,
    UNet2DConditionModel,
)
from paramerge.training.tiny.models import token_ids
from paramerge.training.tiny.scenes import Composer, Scene, SceneMix, draw_scene, random_generator, single
from paramerge.training.tiny.split import Split

__all__ = ["DiffusionPart", "TextToImage", "scene_bank"]

_NO_CAPTION = 0.1
"""The share of scenes shown without caption, for classifier-free guidance."""


class TextToImage(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The prediction for latents (n, c, h, w) at ``times`` (n,) with captions' ``tokens`` (n, 24)."""
        text = self.text_encoder(tokens)[0]
        prediction: torch.Tensor = self.unet(noisy, times, text, return_dict=False)[0]
        return prediction


def scene_bank(split: Split, seed: int, count: int, mix: SceneMix) -> list[Scene]:
    """The scenes to train on: each pair plainly on white, and ``count`` drawn at random."""
    rng = random_generator(seed, "scenes")
    plain = [single(subject, style) for subject, style in split.training]
    return plain + [draw_scene(split, rng, mix) for _ in range(count)]


def _digest(scenes: list[Scene]) -> str:
    return hashlib.sha256(repr(scenes).encode()).hexdigest()[:12]


class DiffusionPart:
    """v-prediction on a bank of scenes whose latents and tokens are computed once."""

    name = "text-to-image"

    def __init__(
        self,
        model: TextToImage,
        scheduler: DDIMScheduler,
        autoencoder: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        composer: Composer,
        scenes: list[Scene],
        seed: int,
        batch: int,
        device: torch.device,
    ) -> None:
        self.model: nn.Module = model.to(device)
        widths = tuple(model.unet.config.block_out_channels)
        self.identity = f"text-to-image seed={seed} batch={batch} scenes={_digest(scenes)} {widths}"
        self._scheduler, self._seed, self._batch, self._device = scheduler, seed, batch, device
        self._latents = encode(autoencoder, composer.compose_all(scenes))
        self._tokens = token_ids(tokenizer, [scene.caption for scene in scenes]).to(device)
        self._no_caption = token_ids(tokenizer, [""]).to(device)

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        """The squared error of the predicted velocity."""
        generator = torch_generator(self._seed, self.name, step)
        at = torch.randint(len(self._latents), (self._batch,), generator=generator).to(self._device)
        latents = self._latents[at]
        noise = torch.randn(latents.shape, generator=generator).to(self._device)
        steps = self._scheduler.config.num_train_timesteps
        # one time from each of as many equal stretches: the loss varies less than with free draws
        stretch = (torch.arange(self._batch) + torch.rand(self._batch, generator=generator)) / self._batch
        times = (stretch * steps).long().clamp(max=steps - 1).to(self._device)
        silent = (torch.rand(self._batch, generator=generator) < _NO_CAPTION).to(self._device)
        tokens = torch.where(silent[:, None], self._no_caption, self._tokens[at])
        noisy = self._scheduler.add_noise(latents, noise, times)
        wanted = self._scheduler.get_velocity(latents, noise, times)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            predicted = model(noisy, times, tokens)
        return functional.mse_loss(predicted.float(), wanted)
