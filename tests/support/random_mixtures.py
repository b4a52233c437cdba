"""Random mixtures of adapters, baked by NumPy in float64 with one rounding: what ``explain`` must find again.

The model is of no known architecture, so its layers go by their own names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from baking import DTYPES, load
from numpy.typing import NDArray

from paramerge.files.writer import write_safetensors
from paramerge.formats import write_para
from paramerge.models.names import MODEL, ModuleName

Matrix = NDArray[np.float64]

SHAPES = {
    "blocks.0.attn.to_q": (96, 64),
    "blocks.0.attn.to_v": (64, 96),
    "blocks.0.mlp.fc1": (128, 80),
    "blocks.1.attn.to_q": (96, 64),
    "blocks.1.attn.to_v": (64, 96),
    "blocks.1.mlp.fc1": (128, 80),
    "blocks.2.attn.to_q": (80, 80),
    "blocks.2.mlp.fc1": (72, 120),
}
PARAS = ("p", "q")
LORAS = ("l", "m", "n")


@dataclass(frozen=True)
class Workshop:
    """Adapters in files, and their numbers as these hold them."""

    folder: Path
    weights: dict[str, Matrix] = field(default_factory=dict)
    bases: dict[str, dict[str, Matrix]] = field(default_factory=dict)
    changes: dict[str, dict[str, Matrix]] = field(default_factory=dict)

    @property
    def adapters(self) -> Path:
        """The folder of adapters."""
        return self.folder / "adapters"

    def base(self, dtype: str) -> Path:
        """The model in a dtype."""
        path = self.folder / f"base-{dtype}"
        if not path.exists():
            write_model(path, self.weights, dtype)
        return path

    def weight(self, layer: str, dtype: str) -> Matrix:
        """A layer's weight as the model in ``dtype`` has it."""
        return self.weights[layer].astype(DTYPES[dtype]).astype(np.float64)


def write_model(path: Path, weights: dict[str, Matrix], dtype: str) -> None:
    """A folder of a language model with these weights."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    tensors = {f"{k}.weight": W.astype(DTYPES[dtype]) for k, W in weights.items()}
    write_safetensors(path / "model.safetensors", tensors, {}, overwrite=True)


def write_lora(path: Path, rng: np.random.Generator, size: float) -> dict[str, Matrix]:
    """A random LoRA on all layers, in fp16; its changes by layer."""
    tensors, changes = {}, {}
    for layer, (d, k) in SHAPES.items():
        B, A = rng.normal(0, size, (d, 3)).astype(np.float16), rng.normal(0, 0.3, (3, k)).astype(np.float16)
        tensors |= {f"{layer}.lora_B.weight": B, f"{layer}.lora_A.weight": A}
        changes[layer] = B.astype(np.float64) @ A.astype(np.float64)
    write_safetensors(path, tensors, {})
    return changes


def workshop(folder: Path, seed: int = 0, size: float = 0.05) -> Workshop:
    """A model, two PaRas and three LoRAs."""
    rng = np.random.default_rng(seed)
    made = Workshop(folder)
    made.adapters.mkdir(parents=True)
    made.weights.update({k: rng.normal(0, 0.05, shape).astype(np.float32).astype(np.float64)
                         for k, shape in SHAPES.items()})  # fmt: skip
    for name in PARAS:
        raw = {layer: rng.standard_normal((shape[0], 3)) for layer, shape in SHAPES.items()}
        modules = {ModuleName(MODEL, layer): B for layer, B in raw.items()}
        write_para(made.adapters / f"{name}.safetensors", modules, architecture=None, dtype="F32")
        stored = load(made.adapters / f"{name}.safetensors").tensors
        made.bases[name] = {
            layer: np.linalg.qr(stored[next(key for key in stored if layer in key)].astype(np.float64))[0]
            for layer in raw
        }
    for name in LORAS:
        made.changes[name] = write_lora(made.adapters / f"{name}.safetensors", rng, size)
    return made


@dataclass(frozen=True)
class Mixture:
    """A bake: names with strengths in their order, and whether neighbouring PaRas are merged jointly."""

    steps: tuple[tuple[str, float], ...]
    joint: bool
    dtype: str

    @property
    def strengths(self) -> dict[str, float]:
        """By name."""
        return dict(self.steps)


def mixtures(count: int, seed: int = 0, dtypes: Sequence[str] = ("F16", "BF16", "F32")) -> Iterator[Mixture]:
    """Random mixtures of one to three adapters."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        names = rng.permutation([*PARAS, *LORAS])[: rng.integers(1, 4)]
        steps = []
        for name in map(str, names):
            if name in PARAS:
                steps.append((name, 1.0 if rng.random() < 0.6 else float(rng.uniform(0.2, 0.9))))
            else:
                steps.append((name, float(rng.uniform(0.1, 1.5) * rng.choice([-1, 1]))))
        yield Mixture(tuple(steps), bool(rng.random() < 0.5), str(rng.choice(dtypes)))


def bake(made: Workshop, mixture: Mixture, path: Path) -> Path:
    """The mixture as a checkpoint, each layer worked out in float64 and rounded once."""
    weights = {layer: mixed(made, mixture, layer) for layer in SHAPES}
    write_model(path, weights, mixture.dtype)
    return path


def mixed(made: Workshop, mixture: Mixture, layer: str) -> Matrix:
    """One layer of the mixture, not rounded yet."""
    W = made.weight(layer, mixture.dtype)
    steps = list(mixture.steps)
    while steps:
        name, strength = steps.pop(0)
        if name not in PARAS:
            W = W + strength * made.changes[name][layer]
            continue
        group = [(made.bases[name][layer], strength)]
        while mixture.joint and steps and steps[0][0] in PARAS:
            other, second = steps.pop(0)
            group.append((made.bases[other][layer], second))
        W = W - joint_projector(group) @ W
    return W


def joint_projector(group: Sequence[tuple[Matrix, float]]) -> Matrix:
    """``sum_k s_k (P_V(s_k) - P_V(s_{k-1}))`` over falling strengths, V the span of those as strong."""
    total = np.zeros((len(group[0][0]),) * 2)
    before = np.zeros_like(total)
    for strength in sorted({s for _, s in group}, reverse=True):
        U, S, _ = np.linalg.svd(np.concatenate([Q for Q, s in group if s >= strength], axis=1))
        U = U[:, : len(S)][:, S > 1e-9]
        total += strength * (U @ U.T - before)
        before = U @ U.T
    return total
