"""Checkpoints of true layout and random weights, written as a stream: for tests, benchmarks and first steps.

The weights depend on the seed and on what a tensor is, not on the layout: the single file and the diffusers
folder of one blueprint and one seed are the same model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import BinaryIO

import numpy as np
from blueprint_configs import folder_configs
from blueprints import Blueprint, TensorSpec

from paramerge.errors import UsageError
from paramerge.files.dtypes import BITS, FLOATS, NUMPY
from paramerge.files.header import encode_header

__all__ = ["LAYOUTS", "write_random_checkpoint"]

LAYOUTS = ("single-file", "diffusers-folder", "unet-file")
"""The layouts that can be written."""

CHUNK = 2**18
"""Elements drawn and written at a time: half a megabyte in float16, which stays in the cache."""


def write_random_checkpoint(
    blueprint: Blueprint,
    path: str | os.PathLike[str],
    seed: int = 0,
    *,
    layout: str = "single-file",
    dtype: str = "F16",
    max_shard_bytes: int | None = None,
    variant: str | None = None,
    text_model_prefix: bool = True,
    zeros: bool = False,
    metadata: dict[str, str] | None = None,
) -> list[Path]:
    """Write a checkpoint of ``blueprint`` with random weights to ``path`` and return its weight files.

    Weights are normal with variance 1 / fan-in, norms are about 1, biases are small; buffers such as the
    noise schedule and ``position_ids`` have their true values and dtypes.

    Parameters
    ----------
    layout:
        ``single-file`` (LDM), ``diffusers-folder`` (``path`` is the folder) or ``unet-file`` (LDM keys of
        the UNet alone).
    dtype:
        The weights' dtype, a floating one by safetensors' name.
    max_shard_bytes:
        In a folder, split weights larger than this into shards with an index.
    variant:
        In a folder, put this into the weights' names (``diffusion_pytorch_model.fp16.safetensors``).
    text_model_prefix:
        In a folder, whether the first text encoder's keys begin with ``text_model.``, as transformers wrote
        them before version 5.
    zeros:
        Write the header and a hole instead of weights: a full-size file at once and without disk space.
    metadata:
        The header's metadata; by default ``{"format": "pt"}``, which transformers wants.

    Raises
    ------
    UsageError
        Unknown layout or a dtype that is no floating one.
    """
    if dtype not in FLOATS:
        raise UsageError("weights cannot have this dtype", expected=", ".join(FLOATS), found=dtype)
    path = Path(path)
    fill = _Fill(seed, zeros, {"format": "pt"} if metadata is None else metadata)
    if layout == "diffusers-folder":
        return _write_folder(
            blueprint,
            path,
            dtype=dtype,
            limit=max_shard_bytes,
            variant=variant,
            text_model_prefix=text_model_prefix,
            fill=fill,
        )
    if layout not in LAYOUTS:
        raise UsageError("unknown layout", expected=", ".join(LAYOUTS), found=layout)
    specs = blueprint.single_file(dtype)
    if layout == "unet-file":
        specs = [spec for spec in specs if spec.parts and spec.parts[0][0].startswith("unet.")]
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_file(path, specs, fill)
    return [path]


@dataclass(frozen=True, slots=True)
class _Fill:
    """What the files are filled with, besides what the blueprint says."""

    seed: int
    zeros: bool
    metadata: dict[str, str]


def _write_file(path: Path, specs: list[TensorSpec], fill: _Fill) -> None:
    entries = [(spec.key, spec.dtype, spec.shape, _nbytes(spec)) for spec in specs]
    with open(path, "wb") as stream:
        stream.write(encode_header(entries, fill.metadata))
        if fill.zeros:
            stream.truncate(stream.tell() + sum(entry[3] for entry in entries))
            return
        for spec in specs:
            _write_values(stream, spec, fill.seed)


def _nbytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * BITS[spec.dtype] // 8


def _write_folder(
    blueprint: Blueprint,
    folder: Path,
    *,
    dtype: str,
    limit: int | None,
    variant: str | None,
    text_model_prefix: bool,
    fill: _Fill,
) -> list[Path]:
    for relative, config in folder_configs(blueprint).items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_text(json.dumps(config, indent=2) + "\n")
    written = []
    for component in blueprint.components:
        specs = blueprint.component(component, dtype, text_model_prefix=text_model_prefix)
        stem = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        shards = _shards(specs, limit)
        dotted = f".{variant}" if variant else ""
        names = [f"{stem}{dotted}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        if len(shards) == 1:
            names = [f"{stem}{dotted}.safetensors"]
        else:
            _write_index(folder / component / f"{stem}.safetensors.index{dotted}.json", names, shards)
        for name, shard in zip(names, shards, strict=True):
            written.append(folder / component / name)
            _write_file(written[-1], shard, fill)
    return written


def _shards(specs: list[TensorSpec], limit: int | None) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if limit is not None and shards[-1] and size + _nbytes(spec) > limit:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += _nbytes(spec)
    return shards


def _write_index(path: Path, names: list[str], shards: list[list[TensorSpec]]) -> None:
    weight_map = {spec.key: name for name, shard in zip(names, shards, strict=True) for spec in shard}
    total = sum(_nbytes(spec) for shard in shards for spec in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n")


def _write_values(stream: BinaryIO, spec: TensorSpec, seed: int) -> None:
    if not spec.parts:
        stream.write(_buffer(spec).astype(NUMPY[spec.dtype]).tobytes())
    elif spec.transposed:
        ((name, shape),) = spec.parts
        stream.write(np.concatenate(list(_draw(name, shape, spec.dtype, seed))).reshape(shape).T.tobytes())
    else:
        for name, shape in spec.parts:
            for chunk in _draw(name, shape, spec.dtype, seed):
                stream.write(chunk.view(np.uint8).data)


def _draw(name: str, shape: tuple[int, ...], dtype: str, seed: int) -> Iterator[np.ndarray]:
    """The values of the tensor called ``name``, flat, in chunks.

    16 random bits choose one of 65,536 quantiles of the normal distribution, already rounded to ``dtype``:
    as fast as copying, and exactly reproducible.
    """
    mean, deviation = _moments(name, shape)
    table = (mean + deviation * _quantiles()).astype(NUMPY[dtype])
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    bits = np.random.SFC64(int.from_bytes(digest[:16], "little"))
    left = math.prod(shape)
    while left:
        count = min(left, CHUNK)
        yield table[bits.random_raw(-(-count // 4)).view(np.uint16)[:count]]
        left -= count


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation for a tensor of this name and shape."""
    if len(shape) > 1:
        return 0.0, 0.02 if "embedding.weight" in name else 1 / math.sqrt(math.prod(shape[1:]))
    return (1.0 if name.endswith(".weight") else 0.0), 0.02


@cache
def _quantiles() -> np.ndarray:
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 2**16) for i in range(2**16)])


def _buffer(spec: TensorSpec) -> np.ndarray:
    name = spec.key.rpartition(".")[2]
    if name == "position_ids":
        return np.arange(math.prod(spec.shape)).reshape(spec.shape)
    if name == "logit_scale":
        return np.array(math.log(100))
    return _schedule()[name]


@cache
def _schedule() -> dict[str, np.ndarray]:
    """Stable Diffusion's noise schedule ("scaled linear") and the numbers that LDM derives from it."""
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    alphas = np.cumprod(1 - betas)
    before = np.append(1.0, alphas[:-1])
    variance = betas * (1 - before) / (1 - alphas)
    return {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(alphas),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas),
        "log_one_minus_alphas_cumprod": np.log(1 - alphas),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
    }
