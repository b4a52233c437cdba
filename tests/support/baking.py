"""What the tests of ``bake`` share: small checkpoints and adapters, and a reference in NumPy float64.

The reference reads files by itself and knows nothing of paramerge's key maps and algebra: its bases come from
NumPy's SVD, its rounding from NumPy's and ml_dtypes' casts.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from blueprints import sd15, sdxl
from numpy.typing import NDArray
from random_checkpoint import write_random_checkpoint

from paramerge.adapters import Adapter
from paramerge.apply.steps import BakeOptions, Step
from paramerge.bake.plan import Plan, make_plan
from paramerge.checkpoints.layout import open_base
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter, write_para
from paramerge.models.names import ModuleName

Array = NDArray[np.generic]

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "U32": np.dtype(np.uint32),
}
BLUEPRINTS = {"sd15": sd15, "sdxl": sdxl}
LARGEST_SHARE_OFF = 0.0005
"""The promise: at most one unit in the last place, in under 0.05 percent of the elements."""


@dataclass(frozen=True)
class Stored:
    """The tensors of a safetensors file in their own dtypes, its metadata and the bytes of each tensor."""

    tensors: dict[str, Array]
    metadata: dict[str, str]
    raw: dict[str, bytes]


def load(path: Path) -> Stored:
    """Read a whole file, or all weights of a component's folder."""
    if path.is_dir():
        parts = [load(file) for file in sorted(path.glob("*.safetensors"))]
        return Stored(
            {key: array for part in parts for key, array in part.tensors.items()},
            parts[0].metadata,
            {key: raw for part in parts for key, raw in part.raw.items()},
        )
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors, raw = {}, {}
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        raw[key] = data[8 + length + begin : 8 + length + end]
        tensors[key] = np.frombuffer(raw[key], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return Stored(tensors, metadata, raw)


def small_model(path: Path, architecture: str = "sd15", **options: object) -> Path:
    """A checkpoint of an architecture's true keys at an eighth (SDXL: a sixteenth) of the widths."""
    blueprint = BLUEPRINTS[architecture](8 if architecture == "sd15" else 16, vocabulary=64)
    write_random_checkpoint(blueprint, path, seed=1, **options)  # type: ignore[arg-type]
    return path


def shapes_of(base: Path) -> dict[str, tuple[int, ...]]:
    """Every layer that an adapter can reach, by its name with the component in front."""
    return {
        str(name): target.shape for file in open_base(base).files for name, target in file.targets.items()
    }


def name_of(layer: str) -> ModuleName:
    """``unet.down_blocks...`` as the package names it."""
    component, _, path = layer.partition(".")
    return ModuleName(component, path)


def random_bases(
    shapes: Mapping[str, tuple[int, ...]], layers: Sequence[str], rank: int, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """A random raw basis (d, rank) for each layer, of fewer columns where d is smaller."""
    rng = np.random.default_rng(seed)
    return {layer: rng.standard_normal((d := shapes[layer][0], min(rank, d))) for layer in layers}


def para_file(path: Path, bases: Mapping[str, Array], architecture: str = "sd15", dtype: str = "F16") -> Path:
    """Write a native PaRa."""
    modules = {name_of(layer): np.asarray(B, np.float64) for layer, B in bases.items()}
    write_para(path, modules, architecture=architecture, dtype=dtype)
    return path


def random_factors(
    shapes: Mapping[str, tuple[int, ...]], layers: Sequence[str], rank: int, seed: int = 0, size: float = 0.02
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Random ``up`` (d, rank) and ``down`` (rank, k...) for each layer."""
    rng = np.random.default_rng(seed)
    return {
        layer: (
            rng.normal(0, size, (shapes[layer][0], rank)).astype(np.float32),
            rng.normal(0, 0.2, (rank, *shapes[layer][1:])).astype(np.float32),
        )
        for layer in layers
    }


_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def lora_file(
    path: Path,
    factors: Mapping[str, tuple[Array, Array]],
    alpha: float | None = None,
    dtype: str = "F16",
    two_encoders: bool = False,
) -> Path:
    """Write a LoRA in kohya's dialect; ``two_encoders`` names them te1 and te2, as for SDXL."""
    tensors: dict[str, Array] = {}
    for layer, (up, down) in factors.items():
        component, _, name = layer.partition(".")
        prefix = "lora_te1" if two_encoders and component == "text_encoder" else _KOHYA[component]
        stem = f"{prefix}_{name.replace('.', '_')}"
        tensors[f"{stem}.lora_up.weight"] = up.reshape(*up.shape, *(1,) * (down.ndim - 2)).astype(
            DTYPES[dtype]
        )
        tensors[f"{stem}.lora_down.weight"] = down.astype(DTYPES[dtype])
        if alpha is not None:
            tensors[f"{stem}.alpha"] = np.array(alpha, DTYPES[dtype])
    write_safetensors(path, tensors, {})
    return path


def plan_of(base: Path, *steps: Step, **options: object) -> Plan:
    """Open everything and make the plan."""
    opened: list[tuple[Step, Adapter]] = [(step, open_adapter(step.path, family=step.kind)) for step in steps]
    return make_plan(open_base(base), opened, BakeOptions(**options))  # type: ignore[arg-type]


def rounded(values: Array, dtype: str) -> NDArray[np.float64]:
    """Values as they come back from storage in ``dtype``."""
    return np.asarray(values, np.float64).astype(DTYPES[dtype]).astype(np.float64)


def span(B: Array, cut: float = 1e-9) -> NDArray[np.float64]:
    """An orthonormal basis of the column space, from the SVD."""
    U, S, _ = np.linalg.svd(np.asarray(B, np.float64), full_matrices=False)
    return U[:, S / S[0] > cut]


def remove(W: NDArray[np.float64], B: Array, strength: float = 1.0, cut: float = 1e-9) -> NDArray[np.float64]:
    """The paper's equation 3: ``W - s Q Q^T W`` on the flattened weight."""
    Q = span(B, cut)
    flat = W.reshape(W.shape[0], -1)
    return (flat - strength * (Q @ (Q.T @ flat))).reshape(W.shape)


def add(W: NDArray[np.float64], up: Array, down: Array, scale: float = 1.0) -> NDArray[np.float64]:
    """``W + scale * B A``, dense."""
    B = np.asarray(up, np.float64).reshape(up.shape[0], -1)
    A = np.asarray(down, np.float64).reshape(down.shape[0], -1)
    return W + (scale * (B @ A)).reshape(W.shape)


def check_close(found: Array, expected: NDArray[np.float64], layer: str = "") -> float:
    """Assert the promise for one tensor against the unrounded reference; returns the share that is off."""
    wanted = expected.astype(found.dtype)
    distance = np.abs(_ordered(found) - _ordered(wanted))
    assert distance.max(initial=0) <= 1, f"{layer}: {distance.max()} units in the last place"
    return float(np.mean(distance > 0))


def _ordered(values: Array) -> NDArray[np.int64]:
    """Floats as integers that count units in the last place."""
    width = values.dtype.itemsize
    bits = np.ascontiguousarray(values).view(f"i{width}").astype(np.int64)
    return np.where(bits < 0, -(bits & (2 ** (8 * width - 1) - 1)), bits)
