"""The architecture of ``docs/extending.md``: small models of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramerge.files.writer import write_safetensors

WIDTH = 16
Arrays = Mapping[str, NDArray[np.float32]]

STACKS = {f"toy_blocks.{i}.attn.qkv": [f"stages.{i}.attn.to_{x}" for x in "qkv"] for i in range(2)}
NAMES = {
    "patch_in": "x_embedder",
    "final.linear": "proj_out",
    **{
        f"toy_blocks.{i}.{single}": f"stages.{i}.{diffusers}"
        for i in range(2)
        for single, diffusers in (
            ("attn.proj", "attn.to_out.0"),
            ("mlp.0", "ff.net.0.proj"),
            ("mlp.2", "ff.net.2"),
        )
    },
}
"""The single file's layers and diffusers', written out here apart from the record."""
SWAPPED = ("final.mod", "norm_out.linear")

SHAPES = {
    "x_embedder": (WIDTH, 4),
    "proj_out": (4, WIDTH),
    "norm_out.linear": (2 * WIDTH, WIDTH),
    **{
        f"stages.{i}.{layer}": shape
        for i in range(2)
        for layer, shape in (
            ("attn.to_q", (16, WIDTH)),
            ("attn.to_k", (8, WIDTH)),
            ("attn.to_v", (8, WIDTH)),
            ("attn.to_out.0", (WIDTH, WIDTH)),
            ("ff.net.0.proj", (32, WIDTH)),
            ("ff.net.2", (WIDTH, 32)),
        )
    },
}


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The model's weights by diffusers' names of layers."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def as_single_file(layers: Arrays) -> dict[str, NDArray[np.float32]]:
    """Weights, or changes of weights, under the single file's names of layers."""
    halves = np.split(layers[SWAPPED[1]], 2)
    return {
        SWAPPED[0]: np.concatenate(halves[::-1]),
        **{single: layers[diffusers] for single, diffusers in NAMES.items()},
        **{stack: np.concatenate([layers[part] for part in parts]) for stack, parts in STACKS.items()},
    }


def write_file(path: Path, prefix: str = "") -> Path:
    """The model as a single file."""
    tensors = {f"{prefix}{name}.weight": value for name, value in as_single_file(weights()).items()}
    write_safetensors(path, tensors, {})
    return path


def write_folder(folder: Path) -> Path:
    """The model as a folder of diffusers."""
    (folder / "transformer").mkdir(parents=True)
    index = {"_class_name": "ToyPipeline", "transformer": ["diffusers", "ToyTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer" / "config.json").write_text('{"_class_name": "ToyTransformer2DModel"}')
    tensors = {f"{name}.weight": value for name, value in weights().items()}
    write_safetensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors, {})
    return folder
