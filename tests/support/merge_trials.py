"""Merges of single tensors: files of related ones, and a method on one of them by a bake's arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from baking import DTYPES
from merge_formulas import Array
from numpy.typing import NDArray

from paramerge.apply.kernel import Blocks, TensorEditor, as_matrix
from paramerge.apply.tensor_plan import TensorPlan, matrix_shape
from paramerge.files.header import read_header
from paramerge.files.tensors import stored
from paramerge.files.writer import write_safetensors
from paramerge.merge.checkpoints.ingredients import Merged, MergedValues, Piece, Rows
from paramerge.merge.methods.method import Method
from paramerge.merge.methods.registry import REGISTRY

METHODS = {method.name: method for method in REGISTRY.all()}
SHAPES = {"matrix": (12, 20), "conv": (6, 5, 3, 3), "vector": (37,), "scalar": (), "one": (1, 1)}
EPS = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-24, "F64": 2.0**-53}


def count_of(method: Method, wanted: int = 3) -> int:
    low, high = method.models
    return max(low, min(wanted, high or wanted))


def models_of(
    path: Path, count: int, dtypes: Sequence[str], spread: float = 0.1, seed: int = 0
) -> list[Path]:
    """Files of related tensors of all shapes, a dtype each."""
    files = []
    base = {name: np.random.default_rng([seed, 7]).normal(size=shape) for name, shape in SHAPES.items()}
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        tensors = {
            name: np.asarray(base[name] + spread * rng.normal(size=shape)).astype(
                DTYPES[dtypes[index % len(dtypes)]]
            )
            for name, shape in SHAPES.items()
        }
        files.append(path / f"{seed}-{index}.safetensors")
        write_safetensors(files[-1], tensors)
    return files


def merged(
    files: Sequence[Path], name: str, method: Method, given: dict[str, Any], dtype: str | None = None
) -> NDArray[np.generic]:
    """One tensor of the merge, through the arithmetic of a bake."""
    tensors = [stored(read_header(file), name) for file in files]
    info = tensors[0].info
    shape = matrix_shape(info.shape)
    parts = tuple(Rows((Piece(0, shape[0], tensor),)) for tensor in tensors)
    parameters = method.at(method.read(given, len(files)), [1.0] * len(files))
    values = MergedValues(Merged(f"unet.{name}", method, parameters, parts), shape)
    plan = TensorPlan(info, "unet", dtype or info.dtype, (), values)
    out = bytearray(plan.nbytes)
    target = as_matrix(memoryview(out), plan.dtype, shape[1])
    TensorEditor(plan, Blocks()).write(target, target, 0)
    return np.frombuffer(bytes(out), DTYPES[plan.dtype]).reshape(info.shape)


def read(files: Sequence[Path], name: str) -> list[Array]:
    return [stored(read_header(file), name).read().astype(np.float64) for file in files]
