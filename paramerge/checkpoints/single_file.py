"""An SD1.5-style diffusers folder as one file with LDM keys: names change, and the shape of nothing but the
VAE's attention.

Only SD1's kind is laid out here: one CLIP text encoder under transformers' names, a UNet, a VAE.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from paramerge.files.header import read_header
from paramerge.files.tensors import stored
from paramerge.files.writer import write_safetensors
from paramerge.models.clip_keys import canonical_key
from paramerge.models.unet_keys import LDM_UNET_PREFIX, UNetKeyMap
from paramerge.models.unet_structure import infer_structure
from paramerge.models.vae_keys import LDM_VAE_PREFIX, vae_to_ldm

_TEXT_PREFIX = "cond_stage_model.transformer."
_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def write_single_file(folder: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Write the weights of the diffusers ``folder`` (SD1.5's kind, one file a component) as one file.

    The values and dtypes stay. The configuration is the folder's: a reader that does not know the
    architecture by its widths needs both.

    Raises
    ------
    FileFormatError
        A component is missing or damaged.
    OutputError
        ``output`` cannot be written.
    """
    unet, vae, text_encoder = (_read(Path(folder) / name / file) for name, file in _WEIGHTS.items())
    write_safetensors(output, single_file_tensors(unet, vae, text_encoder), {"format": "pt"})
    return Path(output)


def _read(path: Path) -> dict[str, np.ndarray]:
    header = read_header(path)
    return {key: stored(header, key).read() for key in header.tensors}


def single_file_tensors(
    unet: Mapping[str, np.ndarray], vae: Mapping[str, np.ndarray], text_encoder: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The components' tensors (diffusers' and transformers' keys) under the keys of an SD1.5 file, sorted."""
    tensors = dict(_unet(unet))
    tensors |= dict(_vae(vae))
    for key, value in text_encoder.items():
        name = canonical_key(key)
        if name is not None:
            tensors[_TEXT_PREFIX + name] = value
    return {key: tensors[key] for key in sorted(tensors)}


def _unet(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    names = UNetKeyMap(infer_structure(state))
    for key, value in state.items():
        yield f"{LDM_UNET_PREFIX}{names.to_ldm(key)}", value


def _vae(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    levels = len({key.split(".")[2] for key in state if key.startswith("decoder.up_blocks.")})
    for key, value in state.items():
        # LDM has the attention's Linear layers as 1x1 convolutions
        linear = ".attentions." in key and value.ndim == 2
        yield LDM_VAE_PREFIX + vae_to_ldm(key, levels), value[:, :, None, None] if linear else value
