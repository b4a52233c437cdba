"""The trained parts as a diffusers folder for ``from_pretrained``, and as an SD1.5-style single file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from paramerge.checkpoints.clip_keys import canonical_key
from paramerge.checkpoints.unet_keys import LDM_UNET_PREFIX, UNetKeyMap
from paramerge.checkpoints.unet_structure import infer_structure
from paramerge.checkpoints.vae_keys import LDM_VAE_PREFIX, vae_to_ldm
from paramerge.checkpoints.writer import write_bytes, write_safetensors
from paramerge.training.tiny.libraries import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

__all__ = ["make_pipeline", "single_file_tensors", "write_pipeline", "write_single_file"]

_TEXT_PREFIX = "cond_stage_model.transformer."


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
    """Without a dtype asked for, diffusers loads float32, but transformers what the configuration names."""
    content = json.loads(config.read_text())
    content["dtype"] = "float32"
    write_bytes(config, (json.dumps(content, indent=2) + "\n").encode())


def _copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def single_file_tensors(pipeline: StableDiffusionPipeline) -> dict[str, np.ndarray]:
    """The pipeline's weights under the keys of an SD1.5 single file (LDM), float16, in the file's order."""
    tensors = dict(_unet(pipeline.unet))
    tensors |= dict(_autoencoder(pipeline.vae))
    for key, value in pipeline.text_encoder.state_dict().items():
        name = canonical_key(key)
        if name is not None:
            tensors[_TEXT_PREFIX + name] = _half(value)
    return {key: tensors[key] for key in sorted(tensors)}


def _unet(unet: UNet2DConditionModel) -> list[tuple[str, np.ndarray]]:
    state = unet.state_dict()
    names = UNetKeyMap(infer_structure(state))
    return [(f"{LDM_UNET_PREFIX}{names.to_ldm(key)}", _half(value)) for key, value in state.items()]


def _autoencoder(autoencoder: AutoencoderKL) -> list[tuple[str, np.ndarray]]:
    levels = len(autoencoder.config.block_out_channels)
    tensors = []
    for key, value in autoencoder.state_dict().items():
        # LDM has the attention's Linear layers as 1x1 convolutions
        linear = ".attentions." in key and value.ndim == 2
        stored = value[:, :, None, None] if linear else value
        tensors.append((LDM_VAE_PREFIX + vae_to_ldm(key, levels), _half(stored)))
    return tensors


def _half(value: torch.Tensor) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().half().numpy()
    return array


def write_single_file(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Write the pipeline's weights as one file; its configuration is the folder's."""
    write_safetensors(path, single_file_tensors(pipeline), {"format": "pt"})
