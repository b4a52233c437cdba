"""Every tensor of a UNet and a CLIP text encoder from hyperparameters, by diffusers' names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paramerge.models.unet_structure import UNetStructure, standard_structure

Shapes = Iterator[tuple[str, tuple[int, ...]]]
"""Pairs of a key and a shape, in the order of the modules."""


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """Hyperparameters of a Stable Diffusion UNet; levels go from the finest to the coarsest."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    """Transformer blocks in each transformer of a level; 0 for a level without."""
    mid_depth: int
    context: int
    """Width of the text encoders' output that cross attention reads."""
    heads: tuple[int, ...]
    """Attention heads at each level."""
    groups: int = 32
    """Groups of the group norms."""
    linear_projection: bool = False
    """Whether ``proj_in`` and ``proj_out`` are Linear (SD2, SDXL) or 1x1 convolutions (SD1)."""
    in_channels: int = 4
    out_channels: int = 4
    layers_per_block: int = 2
    time_ids: int = 0
    """Numbers of the micro-conditioning (6 in SDXL, 5 in its refiner, 0 without)."""
    time_id_width: int = 256
    pooled: int = 0
    """Width of the pooled text embedding that joins the micro-conditioning."""

    @property
    def structure(self) -> UNetStructure:
        """The blocks of the UNet."""
        return standard_structure(tuple(depth > 0 for depth in self.depths), self.layers_per_block)


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """Hyperparameters of a CLIP text encoder."""

    width: int
    layers: int
    heads: int
    projection: int = 0
    """Rows of ``text_projection``; 0 for an encoder without."""
    activation: str = "quick_gelu"
    vocabulary: int = 49408
    positions: int = 77
    openclip: bool = False
    """Whether single files hold it under OpenCLIP's names."""
    unused_layers: int = 0
    """Last layers that single files hold and diffusers folders leave out (SD2 reads the last but one)."""


def affine(name: str, *shape: int) -> Shapes:
    """A Linear, Conv or (with one size) normalisation layer: weight and bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def resnet(name: str, inputs: int, outputs: int, time: int | None) -> Shapes:
    """A residual block; ``time`` is the width of the time embedding, None in an autoencoder."""
    yield from affine(f"{name}.norm1", inputs)
    yield from affine(f"{name}.conv1", outputs, inputs, 3, 3)
    if time is not None:
        yield from affine(f"{name}.time_emb_proj", outputs, time)
    yield from affine(f"{name}.norm2", outputs)
    yield from affine(f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from affine(f"{name}.conv_shortcut", outputs, inputs, 1, 1)


def _transformer(name: str, width: int, depth: int, config: UNetConfig) -> Shapes:
    kernel = () if config.linear_projection else (1, 1)
    yield from affine(f"{name}.norm", width)
    yield from affine(f"{name}.proj_in", width, width, *kernel)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, source in (("attn1", width), ("attn2", config.context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, source)
            yield f"{block}.{attention}.to_v.weight", (width, source)
            yield from affine(f"{block}.{attention}.to_out.0", width, width)
        yield from affine(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from affine(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from affine(f"{block}.{norm}", width)
    yield from affine(f"{name}.proj_out", width, width, *kernel)


def unet_shapes(config: UNetConfig) -> Shapes:
    """Keys and shapes of diffusers' ``UNet2DConditionModel``."""
    channels, layers = config.channels, config.layers_per_block
    first, last, time = channels[0], channels[-1], 4 * channels[0]
    yield from affine("conv_in", first, config.in_channels, 3, 3)
    yield from affine("time_embedding.linear_1", time, first)
    yield from affine("time_embedding.linear_2", time, time)
    if config.time_ids:
        added = config.pooled + config.time_ids * config.time_id_width
        yield from affine("add_embedding.linear_1", time, added)
        yield from affine("add_embedding.linear_2", time, time)

    skips, width = [first], first
    for level, outputs in enumerate(channels):
        block = f"down_blocks.{level}"
        for layer in range(layers):
            yield from resnet(f"{block}.resnets.{layer}", width, outputs, time)
            width = outputs
            if depth := config.depths[level]:
                yield from _transformer(f"{block}.attentions.{layer}", width, depth, config)
            skips.append(width)
        if level < len(channels) - 1:
            yield from affine(f"{block}.downsamplers.0.conv", width, width, 3, 3)
            skips.append(width)

    yield from resnet("mid_block.resnets.0", last, last, time)
    yield from _transformer("mid_block.attentions.0", last, config.mid_depth, config)
    yield from resnet("mid_block.resnets.1", last, last, time)

    for level, outputs in enumerate(reversed(channels)):
        block = f"up_blocks.{level}"
        for layer in range(layers + 1):
            yield from resnet(f"{block}.resnets.{layer}", width + skips.pop(), outputs, time)
            width = outputs
            if depth := config.depths[-1 - level]:
                yield from _transformer(f"{block}.attentions.{layer}", width, depth, config)
        if level < len(channels) - 1:
            yield from affine(f"{block}.upsamplers.0.conv", width, width, 3, 3)
    yield from affine("conv_norm_out", first)
    yield from affine("conv_out", config.out_channels, first, 3, 3)


def clip_shapes(config: ClipConfig, layers: int | None = None) -> Shapes:
    """Keys (with ``text_model.``) and shapes of transformers' CLIP text encoder."""
    width = config.width
    yield "text_model.embeddings.token_embedding.weight", (config.vocabulary, width)
    yield "text_model.embeddings.position_embedding.weight", (config.positions, width)
    for i in range(config.layers if layers is None else layers):
        layer = f"text_model.encoder.layers.{i}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from affine(f"{layer}.self_attn.{projection}", width, width)
        yield from affine(f"{layer}.layer_norm1", width)
        yield from affine(f"{layer}.mlp.fc1", 4 * width, width)
        yield from affine(f"{layer}.mlp.fc2", width, 4 * width)
        yield from affine(f"{layer}.layer_norm2", width)
    yield from affine("text_model.final_layer_norm", width)
    if config.projection:
        yield "text_projection.weight", (config.projection, width)
