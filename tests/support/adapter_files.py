"""Adapter files for tests: made-up ones in every dialect, and what the reader makes of a file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paramerge.adapters import Adapter, LoraModule
from paramerge.files.writer import write_safetensors

Array = NDArray[np.generic]
Factors = tuple[NDArray[np.float64], NDArray[np.float64]]

BF16 = np.dtype(ml_dtypes.bfloat16)
REAL_LORAS = (
    "cloneofsimo_analog_svd_rank4.safetensors",
    "cloneofsimo_lora_disney.safetensors",
    "diffusers_old_catundchat_sd15.safetensors",
    "peft_sd15_text_encoder",
)
REAL_LOKRS = ("lycoris_lokr_smart_falcon_16.safetensors", "lycoris_lokr_smart_falcon_8.safetensors")


def save(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file."""
    write_safetensors(path, tensors, metadata)
    return path


def kohya_layer(
    stem: str, up: Array, down: Array, alpha: float | None = None, mid: Array | None = None
) -> dict[str, Array]:
    """The keys of one layer as kohya names them."""
    tensors = {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
    if mid is not None:
        tensors[f"{stem}.lora_mid.weight"] = mid
    if alpha is not None:
        tensors[f"{stem}.alpha"] = np.array(alpha, up.dtype)
    return tensors


def random_factors(
    rng: np.random.Generator, out: int, width: int, rank: int, dtype: np.dtype | type = np.float32
) -> tuple[Array, Array]:
    """Random up (out, rank) and down (rank, width)."""
    return rng.standard_normal((out, rank)).astype(dtype), rng.standard_normal((rank, width)).astype(dtype)


def factors(module: LoraModule) -> Factors:
    """``scale * B`` and A in float64, as the reader gives them."""
    B, A = (factor.astype(np.float64) for factor in module.factors())
    return module.scale * B, A


def deltas(adapter: Adapter) -> dict[str, NDArray[np.float64]]:
    """``scale * B A`` of every layer, flattened to (out, in * kh * kw)."""
    found = {}
    for name, module in adapter.modules.items():
        assert isinstance(module, LoraModule)
        B, A = factors(module)
        found[str(name)] = B @ A
    return found


def product_distance(one: Factors, other: Factors) -> float:
    """``||B1 A1 - B2 A2|| / ||B2 A2||``, Frobenius, without forming the products."""
    (B1, A1), (B2, A2) = one, other
    up = np.linalg.qr(np.concatenate([B1, -B2], axis=1), mode="r")
    down = np.linalg.qr(np.concatenate([A1, A2], axis=0).T, mode="r")
    return float(np.linalg.norm(up @ down.T) / product_norm(other))


def product_norm(pair: Factors) -> float:
    """``||B A||``, Frobenius, by the triangular factors of both."""
    B, A = pair
    return float(np.linalg.norm(np.linalg.qr(B, mode="r") @ np.linalg.qr(A.T, mode="r").T))


def relative_distance(found: Array, expected: Array) -> float:
    """Relative Frobenius distance."""
    gap = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(gap) / np.linalg.norm(expected.astype(np.float64)))


def inventory(shared_dir: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a real file, from the list kept of it; -1 stands for a rank."""
    with gzip.open(shared_dir / "fixtures" / "inventories" / f"{name}.json.gz") as stream:
        content = json.load(stream)
    if isinstance(content, dict):
        return {key: tuple(entry["shape"]) for key, entry in content.items()}
    pairs = (line.rpartition(" ") for line in content)
    return {key: tuple(json.loads(shape)) for key, _, shape in pairs}
