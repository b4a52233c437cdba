"""The trained parts as a diffusers folder for ``from_pretrained``."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from paramerge.files.writer import write_bytes
from paramerge.strict_json import read_object
from paramerge.training.tiny.libraries import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

__all__ = ["make_pipeline", "write_pipeline"]


def make_pipeline(
    autoencoder: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
) -> StableDiffusionPipeline:
    """The parts as a pipeline, without a safety checker."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Save ``pipeline`` to ``folder`` in float16; the one in memory stays as it is."""
    parts = ("vae", "text_encoder", "unet")
    states = {name: _copy_of(getattr(pipeline, name)) for name in parts}
    for name in parts:
        getattr(pipeline, name).half()
    pipeline.save_pretrained(folder)
    _load_as_float32(folder / "text_encoder" / "config.json")
    for name, state in states.items():
        module = getattr(pipeline, name).float()
        module.load_state_dict(state)


def _load_as_float32(config: Path) -> None:
    """Without a dtype asked for, diffusers loads float32, but transformers the dtype of the configuration."""
    content = read_object(config)
    content["dtype"] = "float32"
    write_bytes(config, (json.dumps(content, indent=2) + "\n").encode())


def _copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}
