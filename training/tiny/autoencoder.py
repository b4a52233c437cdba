"""The autoencoder's training, and the scale of its latents folded into its own weights.

It learns from every picture but those held out, named or not, so it draws subjects that the text-to-image
model does not know yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from paramerge.training.chance import generator as torch_generator
from paramerge.training.tiny.libraries import AutoencoderKL
from paramerge.training.tiny.pictures import SIZE
from paramerge.training.tiny.scenes import (
    Composer,
    SceneMix,
    blend,
    draw_scene,
    premultiplied,
    random_generator,
)
from paramerge.training.tiny.split import Split
from paramerge.training.tiny.subjects import BACKGROUNDS

__all__ = ["AutoencoderPart", "encode", "fold_latent_scale", "to_unit"]

_KL_WEIGHT = 1e-4
_OTHERS = 0.5
"""The share of a batch that shows emoji without a name."""
_CHUNK = 64


def to_unit(pictures: np.ndarray) -> torch.Tensor:
    """uint8 pictures (n, 3, h, w) as float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).float() / 127.5 - 1


class AutoencoderPart:
    """Reconstruction with a light pull of the latents towards a normal distribution."""

    name = "autoencoder"

    def __init__(
        self,
        model: AutoencoderKL,
        composer: Composer,
        split: Split,
        seed: int,
        batch: int,
        device: torch.device,
        *,
        bf16: bool = False,
    ) -> None:
        shape = f"{tuple(model.config.block_out_channels)}x{model.config.latent_channels}"
        self.model: nn.Module = model.to(device)
        self.identity = f"{self.name} seed={seed} batch={batch} known={len(split.known)} {shape}"
        self._composer, self._split = composer, split
        self._seed, self._batch, self._device, self._bf16 = seed, batch, device, bf16

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        """L1, squared error, the error of edges, and the divergence."""
        pictures = to_unit(self._pictures(step)).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            posterior = model.encode(pictures).latent_dist  # type: ignore[operator]
            noise = torch.randn(posterior.mean.shape, generator=torch_generator(self._seed, self.name, step))
            latents = posterior.mean + posterior.std * noise.to(self._device)
            drawn = model.decode(latents).sample.float()  # type: ignore[operator]
        edges = sum(functional.l1_loss(drawn.diff(dim=axis), pictures.diff(dim=axis)) for axis in (2, 3))
        error = functional.l1_loss(drawn, pictures) + functional.mse_loss(drawn, pictures)
        mean, variance = posterior.mean.float(), posterior.var.float()
        divergence = 0.5 * (mean**2 + variance - 1 - posterior.logvar.float()).mean()
        total: torch.Tensor = error + 0.5 * edges + _KL_WEIGHT * divergence
        return total

    def _pictures(self, step: int) -> np.ndarray:
        rng = random_generator(self._seed, self.name, step)
        others = round(self._batch * _OTHERS) if self._composer.gallery.others else 0
        scenes = [draw_scene(self._split, rng, SceneMix()) for _ in range(self._batch - others)]
        return np.concatenate(
            [self._composer.compose_all(scenes), *(self._random_picture(rng) for _ in range(others))]
        )

    def _random_picture(self, rng: np.random.Generator) -> np.ndarray:
        picture = self._composer.gallery.others[rng.integers(len(self._composer.gallery.others))]
        colour = list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS)) if rng.random() < 0.5 else 0]
        canvas = np.empty((SIZE, SIZE, 3), np.float32)
        canvas[:] = colour
        side = int(rng.integers(28, 57))
        blend(canvas, premultiplied(picture, side), *(int(x) for x in rng.integers(0, SIZE - side + 1, 2)))
        return np.rint(np.clip(canvas, 0, 255)).astype(np.uint8).transpose(2, 0, 1)[None]


def encode(model: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """The latents' means of uint8 pictures, in chunks, on the model's device."""
    means = []
    with torch.no_grad():
        for start in range(0, len(pictures), _CHUNK):
            part = to_unit(pictures[start : start + _CHUNK]).to(model.device)
            means.append(model.encode(part).latent_dist.mean)
    return torch.cat(means)


def fold_latent_scale(model: AutoencoderKL, pictures: Sequence[np.ndarray] | np.ndarray) -> None:
    """Make each latent channel of ``pictures`` have mean 0 and standard deviation 1, in place.

    Encoding ends and decoding begins with a 1x1 convolution, ``quant_conv`` and ``post_quant_conv``: the
    scale goes into the first and out of the second, decoded pictures stay the same, and no reader of the
    model needs to know (its ``scaling_factor`` is 1). Folding twice changes nothing more.
    """
    latents = encode(model, np.asarray(pictures)).double()
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    to_latents, from_latents = model.quant_conv, model.post_quant_conv
    with torch.no_grad():
        weight, bias = to_latents.weight.double(), to_latents.bias.double()
        weight[:channels] /= deviation[:, None, None, None]
        bias[:channels] = (bias[:channels] - mean) / deviation
        bias[channels:] -= 2 * deviation.log()  # the other half are log variances
        to_latents.weight.copy_(weight)
        to_latents.bias.copy_(bias)
        weight, bias = from_latents.weight.double(), from_latents.bias.double()
        from_latents.bias.copy_(bias + weight[:, :, 0, 0] @ mean)
        from_latents.weight.copy_(weight * deviation[None, :, None, None])
