"""What the tests of ``merge`` and ``compare`` share: a few layers, and dense answers from NumPy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from baking import DTYPES, load
from numpy.typing import NDArray

from paramerge.adapters import LoraModule, ParaModule
from paramerge.checkpoints.layout import open_base
from paramerge.formats import open_adapter, write_para
from paramerge.formats.lora_writer import LoraFactors, write_lora
from paramerge.merge.combine import combine
from paramerge.merge.report import MergeReport
from paramerge.merge.request import CombineOptions, parse_input
from paramerge.models.names import ModuleName

Matrix = NDArray[np.float64]

ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CROSS = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k"
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.3.mlp.fc1"
SHAPES: dict[str, tuple[int, ...]] = {
    ATTENTION: (24, 20),
    CROSS: (16, 768),
    CONV: (12, 5, 3, 3),
    TEXT: (30, 14),
}
"""Small layers with names of SD1.5; ``CROSS`` is as wide as its text, by which the architecture is told."""


def name_of(layer: str) -> ModuleName:
    return ModuleName.parse(layer)


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def write_bases(
    path: Path,
    bases: Mapping[str, Matrix],
    dtype: str = "F32",
    architecture: str | None = "sd15",
    **rest: object,
) -> Path:
    """A PaRa file."""
    modules = {name_of(layer): basis for layer, basis in bases.items()}
    write_para(path, modules, architecture=architecture, dtype=dtype, **rest)  # type: ignore[arg-type]
    return path


def draw_bases(seed: int, rank: int, layers: Sequence[str] = tuple(SHAPES)) -> dict[str, Matrix]:
    """Random bases, neither orthonormal nor of one length."""
    rng = rng_of(seed)
    return {layer: rng.standard_normal((SHAPES[layer][0], rank)) * 3.0 for layer in layers}


def write_factors(
    path: Path,
    factors: Mapping[str, tuple[Matrix, Matrix]],
    alpha: float,
    dtype: str = "F32",
    architecture: str | None = "sd15",
) -> Path:
    """A LoRA file of (up, down) with down flattened."""
    layers = {
        name_of(layer): LoraFactors(up, down, alpha, SHAPES[layer][2:])
        for layer, (up, down) in factors.items()
    }
    write_lora(path, layers, architecture=architecture, dtype=dtype)
    return path


def draw_factors(
    seed: int, rank: int, layers: Sequence[str] = tuple(SHAPES), size: float = 0.1
) -> dict[str, tuple[Matrix, Matrix]]:
    """Random factors."""
    rng = rng_of(seed)
    return {
        layer: (
            rng.standard_normal((SHAPES[layer][0], rank)) * size,
            rng.standard_normal((rank, int(np.prod(SHAPES[layer][1:])))) * size,
        )
        for layer in layers
    }


def merge(output: Path, *inputs: object, base: Path | None = None, **options: object) -> MergeReport:
    """``paramerge merge`` without the command line; inputs as ``FILE@SCALE``."""
    given = [parse_input(str(text)) for text in inputs]
    adapters = [open_adapter(one.path) for one in given]
    opened = None if base is None else open_base(base)
    return combine(
        given, adapters, output, CombineOptions(**{"dtype": "F32", **options}), opened, overwrite=True
    )  # type: ignore[arg-type]


def dense_deltas(path: Path, layers: Collection[str] | None = None) -> dict[str, Matrix]:
    """The layers' changes, dense in float64, from the file's tensors by kohya's rule ``alpha / rank``."""
    content = load(path).tensors
    deltas = {}
    for name, module in open_adapter(path, family="lora").modules.items():
        assert isinstance(module, LoraModule)
        if layers is not None and str(name) not in layers:
            continue
        stem = module.up.key.removesuffix(".lora_up.weight")
        up, down = (content[f"{stem}.lora_{side}.weight"].astype(np.float64) for side in ("up", "down"))
        up, flat = up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1)
        deltas[str(name)] = float(content[f"{stem}.alpha"].astype(np.float64)) / down.shape[0] * (up @ flat)
    return deltas


def projectors(path: Path) -> dict[str, Matrix]:
    """Every layer's dense projector, from the file's own tensors."""
    found = {}
    for name, module in open_adapter(path, family="para").modules.items():
        assert isinstance(module, ParaModule)
        found[str(name)] = projector(load(path).tensors[module.basis.key].astype(np.float64))
    return found


def projector(*bases: Matrix, cut: float = 1e-3) -> Matrix:
    """The dense projector onto the sum of column spaces, by NumPy's SVD."""
    unit = [basis / np.linalg.norm(basis, axis=0) for basis in bases]
    orthonormal = [np.linalg.svd(B, full_matrices=False)[0] for B in unit]
    U, S, _ = np.linalg.svd(np.concatenate(orthonormal, axis=1), full_matrices=False)
    kept = U[:, cut * S[0] < S]
    return np.asarray(kept @ kept.T)


def as_stored(values: Matrix, dtype: str = "F32") -> Matrix:
    """Values as they come back from storage."""
    return np.asarray(values.astype(DTYPES[dtype]).astype(np.float64))


def relative(found: Matrix, expected: Matrix) -> float:
    """Relative Frobenius distance."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
