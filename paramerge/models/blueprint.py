"""Whole checkpoints from hyperparameters: each key, shape and dtype, as single file and as diffusers folder.

A blueprint is the true layout of a published architecture. With ``shrink`` every width is divided by it
while blocks, depths and keys stay, so that a file of a few megabytes has all the keys of the real one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from paramerge.errors import UsageError
from paramerge.models.blueprint_inventory import (
    ClipConfig,
    UNetConfig,
    VaeConfig,
    clip_shapes,
    unet_shapes,
    vae_shapes,
)
from paramerge.models.clip_keys import from_openclip, to_openclip
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
class Encoder:
    """A text encoder of a checkpoint: its component and where single files have it."""

    component: str
    prefix: str
    config: ClipConfig


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A checkpoint's hyperparameters; ``architecture`` is the name that paramerge reports for it."""

    architecture: str
    unet: UNetConfig
    encoders: tuple[Encoder, ...]
    vae: VaeConfig
    schedule: bool
    """Whether single files carry the noise schedule."""

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
            positions = self._encoder(name).config.positions
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

    def _encoder(self, name: str) -> Encoder:
        return next(encoder for encoder in self.encoders if encoder.component == name)

    def _shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        if name == "unet":
            return dict(unet_shapes(self.unet))
        if name == "vae":
            return dict(vae_shapes(self.vae))
        config = self._encoder(name).config
        if name == "text_encoder":  # a CLIPTextModel, whatever the single file has besides
            config = replace(config, projection=0)
        return dict(clip_shapes(config, config.layers - config.unused_layers))

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
    from paramerge.files.dtypes import BITS  # late: it needs NumPy, and records do not

    return sorted(specs, key=lambda spec: (-BITS[spec.dtype], spec.key))


def _divide(size: int, shrink: int) -> int:
    if shrink < 1 or size % shrink:
        raise UsageError(
            "the widths cannot be divided by this", expected="1, 2, 4, 8, 16 or 32", found=shrink
        )
    return size // shrink
