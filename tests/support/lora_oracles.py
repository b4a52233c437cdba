"""What diffusers and PEFT themselves make of a LoRA file: the layers, factors and scales that they load.

The models have the true configurations, but each weight is one zero, spread out: only the adapter is real.
Nothing here uses paramerge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Factors = tuple[NDArray[np.float64], NDArray[np.float64]]

Model = TypeVar("Model", bound=torch.nn.Module)

SDXL_UNET = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}


def hollow(model: Model) -> Model:
    """``model`` with weights that take no memory. (Adapters follow the layer's device, so not meta ones.)"""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight = torch.zeros((), device="cpu").expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device="cpu"))
    return model


def unet(architecture: str) -> UNet2DConditionModel:
    """The UNet of ``sd15`` or ``sdxl`` without weights."""
    config = SDXL_UNET if architecture == "sdxl" else {"cross_attention_dim": 768, "attention_head_dim": 8}
    with torch.device("meta"):
        return hollow(UNet2DConditionModel(**config))


def text_encoder(component: str) -> CLIPTextModel | CLIPTextModelWithProjection:
    """CLIP-L for ``text_encoder``, OpenCLIP bigG for ``text_encoder_2``, without weights."""
    with torch.device("meta"):
        if component == "text_encoder_2":
            return hollow(CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G)))
        return hollow(CLIPTextModel(CLIPTextConfig(**CLIP_L)))


class OldTextEncoder(torch.nn.Module):
    """A text encoder as transformers 4 nests it: the same layers one level down, under ``text_model``."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self.text_model = text_encoder(component)


def by_diffusers(path: Path, architecture: str, components: tuple[str, ...]) -> dict[str, Factors]:
    """Factors of every layer as diffusers' own loaders give them, the scale in B."""
    mixin = StableDiffusionXLLoraLoaderMixin if architecture == "sdxl" else StableDiffusionLoraLoaderMixin
    model = unet(architecture)
    options = {"unet_config": model.config} if architecture == "sdxl" else {}
    content = mixin.lora_state_dict(str(path), return_lora_metadata=True, **options)
    state_dict, alphas, metadata = content
    found: dict[str, Factors] = {}
    if "unet" in components:
        prefix = "unet" if any(key.startswith("unet.") for key in state_dict) else None
        model.load_lora_adapter(
            state_dict, prefix, network_alphas=alphas, metadata=metadata, low_cpu_mem_usage=True
        )
        found |= {f"unet.{name}": pair for name, pair in loaded(model)}
    for component in components:
        if component != "unet":
            encoder = text_encoder(component)
            mixin.load_lora_into_text_encoder(
                state_dict,
                alphas,
                encoder,
                prefix=component,
                metadata=metadata,
                low_cpu_mem_usage=True,
            )
            found |= {f"{component}.{full_name(name)}": pair for name, pair in loaded(encoder)}
    return found


def loaded(model: torch.nn.Module) -> Iterator[tuple[str, Factors]]:
    """Each layer of ``model`` with a LoRA around it, and that LoRA's factors with its scale in B."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.scaling
            B, A = (side[adapter].weight.detach().double().numpy() for side in (layer.lora_B, layer.lora_A))
            yield name, (layer.scaling[adapter] * B.reshape(B.shape[0], -1), A.reshape(A.shape[0], -1))


def full_name(path: str) -> str:
    """A text encoder's layer with the ``text_model.`` that newer versions of transformers leave out."""
    return path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"


@cache
def layers_of_class(component: str, classes: frozenset[str]) -> tuple[tuple[str, tuple[int, int]], ...]:
    """SD1.5's linear layers below modules of ``classes``, as ``named_modules`` goes, with (out, in)."""
    model: Any = unet("sd15") if component == "unet" else text_encoder(component)
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in classes:
            for inner, layer in module.named_modules():
                if isinstance(layer, torch.nn.Linear):
                    found[f"{name}.{inner}"] = (layer.out_features, layer.in_features)
    return tuple(found.items())


def walk_of_2023(classes: frozenset[str]) -> list[tuple[str, tuple[int, int]]]:
    """SD1.5's layers in the order that cloneofsimo's files number them, from diffusers' own UNet.

    A transformer block then registered its attention, its feed-forward and its cross-attention in this
    order; today the feed-forward comes last. All else is registered as it was.
    """
    today = layers_of_class("unet", classes)
    order = {"attn1": 0, "ff": 1, "attn2": 2}
    blocks: dict[str, list[tuple[str, tuple[int, int]]]] = {}
    for name, shape in today:
        blocks.setdefault(name.partition(".transformer_blocks.0.")[0], []).append((name, shape))

    def part(layer: tuple[str, tuple[int, int]]) -> int:
        return order[layer[0].partition(".transformer_blocks.0.")[2].partition(".")[0]]

    return [layer for block in blocks.values() for layer in sorted(block, key=part)]


def reference_factors(state: Mapping[str, torch.Tensor], up: str, down: str) -> Factors:
    """Two tensors as float64 factors."""
    B, A = (state[key].double().numpy() for key in (up, down))
    return B.reshape(B.shape[0], -1), A.reshape(A.shape[0], -1)


def small_unet() -> UNet2DConditionModel:
    """A UNet of SD's layers at toy widths, with random weights."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=24,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


class SmallTextEncoder(torch.nn.Module):
    """A CLIP text encoder of toy size, nested under ``text_model`` as transformers 4 nests it."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(1)
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=32,
        )
        self.text_model = CLIPTextModel(config)


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every LoRA factor of ``model`` random values: PEFT begins with up = 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def merged_deltas(model: torch.nn.Module) -> dict[str, NDArray[np.float64]]:
    """What PEFT adds to each layer's weight when it merges: its own ``get_delta_weight``, flattened."""
    return {
        name: delta.reshape(delta.shape[0], -1)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
        for delta in [layer.get_delta_weight(next(iter(layer.scaling))).detach().double().numpy()]
    }
