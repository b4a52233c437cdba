"""Whole checkpoints from hyperparameters: each key, shape and dtype, as single file and as diffusers folder.

A blueprint is the true layout of a published architecture. With ``shrink`` every width is divided by it
while blocks, depths and keys stay, so that a file of a few megabytes has all the keys of the real one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import cast

from paramerge.errors import UsageError
from paramerge.files.dtypes import BITS
from paramerge.models.blueprint import Blueprint as PublishedBlueprint
from paramerge.models.blueprint import Encoder
from paramerge.models.blueprint_inventory import Shapes, affine, clip_shapes, resnet
from paramerge.models.clip_keys import BLOCK_LAYERS, TOP_LEVEL, from_openclip
from paramerge.models.registry import published
from paramerge.models.unet_keys import LDM_UNET_PREFIX, UNetKeyMap
from paramerge.models.vae_keys import LDM_VAE_PREFIX, vae_to_ldm

SCHEDULE_BUFFERS = (
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)
"""The noise schedule that single files of SD1 and SD2 carry, 1000 float32 numbers each."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a file before there is a file.

    ``parts`` name what it holds independently of the layout (``unet.conv_in.weight``), stacked along the
    rows and ``transposed`` if so; empty for buffers, whose values are given by their key.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """Hyperparameters of the autoencoder."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    latent: int = 4
    layers_per_block: int = 2
    groups: int = 32
    scaling_factor: float = 0.18215


@dataclass(frozen=True, slots=True)
class Blueprint(PublishedBlueprint):
    """A published checkpoint with its VAE and, in some single files, the noise schedule."""

    vae: VaeConfig = field(default_factory=VaeConfig)
    schedule: bool = False

    @property
    def components(self) -> tuple[str, ...]:
        """The components with weights, as a diffusers folder names its subfolders."""
        return ("unet", *(encoder.component for encoder in self.encoders), "vae")

    def component(self, name: str, dtype: str = "F16", *, text_model_prefix: bool = True) -> list[TensorSpec]:
        """The tensors of one component's file in a diffusers folder, in file order.

        Text encoders without projection are saved by transformers 5 without the ``text_model.`` prefix
        (``text_model_prefix=False``).
        """
        shapes = self._shapes(name)
        bare = not text_model_prefix and "text_projection.weight" not in shapes
        specs = [
            TensorSpec(
                key.removeprefix("text_model.") if bare else key, dtype, shape, ((f"{name}.{key}", shape),)
            )
            for key, shape in shapes.items()
        ]
        if self.schedule and name == "text_encoder" and text_model_prefix:
            positions = self.encoders[0].config.positions
            specs.append(TensorSpec("text_model.embeddings.position_ids", "I64", (1, positions)))
        return _file_order(specs)

    def single_file(self, dtype: str = "F16") -> list[TensorSpec]:
        """The tensors of the single file (LDM), in file order. Buffers keep their own dtype."""
        specs = [*self._ldm_unet(dtype), *self._ldm_vae(dtype)]
        for encoder in self.encoders:
            specs += self._openclip(encoder, dtype) if encoder.config.openclip else self._clip(encoder, dtype)
        if self.schedule:
            specs += [TensorSpec(key, "F32", (1000,)) for key in SCHEDULE_BUFFERS]
        return _file_order(specs)

    def shrunk(self, shrink: int, vocabulary: int) -> Blueprint:
        """Divide every width by ``shrink``; blocks, depths and keys stay, and heads while they divide it."""

        def small(sizes: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(_divide(size, shrink) for size in sizes)

        unet, vae = self.unet, self.vae
        encoders = tuple(
            replace(
                encoder,
                config=replace(
                    encoder.config,
                    width=_divide(encoder.config.width, shrink),
                    projection=_divide(encoder.config.projection, shrink),
                    vocabulary=vocabulary,
                ),
            )
            for encoder in self.encoders
        )
        return replace(
            self,
            unet=replace(
                unet,
                channels=small(unet.channels),
                heads=tuple(math.gcd(h, c) for h, c in zip(unet.heads, small(unet.channels), strict=True)),
                groups=_divide(unet.groups, shrink),
                context=_divide(unet.context, shrink),
                pooled=_divide(unet.pooled, shrink),
                time_id_width=_divide(unet.time_id_width, shrink),
            ),
            encoders=encoders,
            vae=replace(vae, channels=small(vae.channels), groups=_divide(vae.groups, shrink)),
        )

    def _shapes(self, component: str) -> dict[str, tuple[int, ...]]:
        if component == "vae":
            return dict(vae_shapes(self.vae))
        return dict(PublishedBlueprint.shapes(self, component))

    def _ldm_unet(self, dtype: str) -> Iterator[TensorSpec]:
        names = UNetKeyMap(self.unet.structure)
        for key, shape in self._shapes("unet").items():
            ldm = names.to_ldm(key)
            yield TensorSpec(f"{LDM_UNET_PREFIX}{ldm}", dtype, shape, ((f"unet.{key}", shape),))

    def _ldm_vae(self, dtype: str) -> Iterator[TensorSpec]:
        for key, shape in self._shapes("vae").items():
            # LDM has the attention's Linear layers as 1x1 convolutions: the same numbers, two more axes
            convolution = ".attentions." in key and len(shape) == 2
            stored = (*shape, 1, 1) if convolution else shape
            ldm = vae_to_ldm(key, len(self.vae.channels))
            yield TensorSpec(f"{LDM_VAE_PREFIX}{ldm}", dtype, stored, ((f"vae.{key}", shape),))

    def _clip(self, encoder: Encoder, dtype: str) -> Iterator[TensorSpec]:
        for key, shape in clip_shapes(encoder.config):
            yield TensorSpec(encoder.prefix + key, dtype, shape, ((f"{encoder.component}.{key}", shape),))
        ids = f"{encoder.prefix}text_model.embeddings.position_ids"
        yield TensorSpec(ids, "I64", (1, encoder.config.positions))

    def _openclip(self, encoder: Encoder, dtype: str) -> Iterator[TensorSpec]:
        shapes = dict(clip_shapes(encoder.config))
        for key in dict.fromkeys(to_openclip(key) for key in shapes):
            tensor = from_openclip(key or "")
            if key is None or tensor is None:
                continue
            parts = tuple((f"{encoder.component}.{part}", shapes[part]) for part in tensor.parts)
            first = parts[0][1]
            shape = first[::-1] if tensor.transposed else (len(parts) * first[0], *first[1:])
            yield TensorSpec(encoder.prefix + key, dtype, shape, parts, tensor.transposed)
        yield TensorSpec(f"{encoder.prefix}logit_scale", dtype, ())


def _file_order(specs: list[TensorSpec]) -> list[TensorSpec]:
    """The order in which safetensors' own writer lays tensors out: wide dtypes first, then by key."""
    return sorted(specs, key=lambda spec: (-BITS[spec.dtype], spec.key))


def _divide(size: int, shrink: int) -> int:
    if shrink < 1 or size % shrink:
        raise UsageError(
            "the widths cannot be divided by this", expected="1, 2, 4, 8, 16 or 32", found=shrink
        )
    return size // shrink


def vae_shapes(config: VaeConfig) -> Shapes:
    """Keys and shapes of diffusers' ``AutoencoderKL``."""
    channels, last = config.channels, config.channels[-1]
    yield from affine("encoder.conv_in", channels[0], 3, 3, 3)
    width = channels[0]
    for level, outputs in enumerate(channels):
        for layer in range(config.layers_per_block):
            yield from resnet(f"encoder.down_blocks.{level}.resnets.{layer}", width, outputs, None)
            width = outputs
        if level < len(channels) - 1:
            yield from affine(f"encoder.down_blocks.{level}.downsamplers.0.conv", width, width, 3, 3)
    yield from _vae_middle("encoder", last)
    yield from affine("encoder.conv_norm_out", last)
    yield from affine("encoder.conv_out", 2 * config.latent, last, 3, 3)
    yield from affine("decoder.conv_in", last, config.latent, 3, 3)
    width = last
    for level, outputs in enumerate(reversed(channels)):
        for layer in range(config.layers_per_block + 1):
            yield from resnet(f"decoder.up_blocks.{level}.resnets.{layer}", width, outputs, None)
            width = outputs
        if level < len(channels) - 1:
            yield from affine(f"decoder.up_blocks.{level}.upsamplers.0.conv", width, width, 3, 3)
    yield from _vae_middle("decoder", last)
    yield from affine("decoder.conv_norm_out", channels[0])
    yield from affine("decoder.conv_out", 3, channels[0], 3, 3)
    yield from affine("quant_conv", 2 * config.latent, 2 * config.latent, 1, 1)
    yield from affine("post_quant_conv", config.latent, config.latent, 1, 1)


def _vae_middle(way: str, width: int) -> Shapes:
    yield from affine(f"{way}.mid_block.attentions.0.group_norm", width)
    for layer in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from affine(f"{way}.mid_block.attentions.0.{layer}", width, width)
    for i in range(2):
        yield from resnet(f"{way}.mid_block.resnets.{i}", width, width, None)


_TOP_LEVEL_BACK = {new: old for old, new in TOP_LEVEL.items()}
_BLOCK_LAYERS_BACK = {new: old for old, new in BLOCK_LAYERS.items()}
_ENCODER_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$")


def to_openclip(key: str) -> str | None:
    """OpenCLIP's key (without prefix) that holds the canonical ``key``; q, k and v share one."""
    if key in _TOP_LEVEL_BACK:
        return _TOP_LEVEL_BACK[key]
    match = _ENCODER_LAYER.match(key)
    if match is None:
        return None
    number, layer, kind = match.groups()
    stem = f"transformer.resblocks.{number}"
    if layer in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        return f"{stem}.attn.in_proj_{kind}"
    return f"{stem}.{_BLOCK_LAYERS_BACK[layer]}.{kind}" if layer in _BLOCK_LAYERS_BACK else None


_XL = VaeConfig(scaling_factor=0.13025)
_BESIDE = {
    "sd15": (VaeConfig(), True),
    "sd2": (VaeConfig(), True),
    "sdxl": (_XL, False),
    "sdxl-refiner": (_XL, False),
}
"""By architecture its VAE, and whether single files carry the noise schedule."""


def blueprint_of(architecture: str, shrink: int = 1, *, vocabulary: int = 49408) -> Blueprint:
    """A published architecture, at its true size or with every width divided by ``shrink``."""
    known = cast(PublishedBlueprint, published()[architecture]())
    vae, schedule = _BESIDE[architecture]
    return Blueprint(known.architecture, known.unet, known.encoders, vae, schedule).shrunk(shrink, vocabulary)


def sd15(shrink: int = 1, *, vocabulary: int = 49408, inpainting: bool = False) -> Blueprint:
    """Stable Diffusion 1.5; ``inpainting`` adds the mask and the masked image to the UNet's input."""
    plain = blueprint_of("sd15", shrink, vocabulary=vocabulary)
    if not inpainting:
        return plain
    return replace(plain, architecture="sd15-inpainting", unet=replace(plain.unet, in_channels=9))


def sd2(shrink: int = 1, *, vocabulary: int = 49408) -> Blueprint:
    """Stable Diffusion 2.0 and 2.1."""
    return blueprint_of("sd2", shrink, vocabulary=vocabulary)


def sdxl(shrink: int = 1, *, vocabulary: int = 49408) -> Blueprint:
    """Stable Diffusion XL base 1.0."""
    return blueprint_of("sdxl", shrink, vocabulary=vocabulary)


def sdxl_refiner(shrink: int = 1, *, vocabulary: int = 49408) -> Blueprint:
    """Stable Diffusion XL refiner 1.0."""
    return blueprint_of("sdxl-refiner", shrink, vocabulary=vocabulary)
