"""What plain dtypes keep of LoRAs of several sizes: the table of docs/survival.md.

    python benchmarks/survival.py

For every dtype a model of four layers (1024 x 1024, normal values of deviation 0.02, as trained weights have)
is baked with a LoRA of rank 16, and the figures are those of the bake's own report. A minute on two cores.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np

import paramerge as pm
from paramerge.apply.steps import Rounding
from paramerge.files.dtypes import NUMPY
from paramerge.files.writer import write_safetensors

DTYPES = {"fp8 e4m3": "F8_E4M3", "fp8 e5m2": "F8_E5M2", "bf16": "BF16", "fp16": "F16"}
PERCENT = (0.5, 1.0, 3.0, 10.0)
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")
SIZE, RANK = 1024, 16

Figure = tuple[float, float]
"""Survival, and the error relative to the change."""


def main() -> None:
    print(*table(), sep="\n")


def table() -> Iterator[str]:
    """The lines of the table, in Markdown."""
    sizes = " | ".join(f"{percent:g} %" for percent in PERCENT)
    yield f"| stored as | rounding | {sizes} |"
    yield "|---|---|" + "---|" * len(PERCENT)
    for name, dtype in DTYPES.items():
        for rounding in get_args(Rounding):
            cells = [f"{kept:.3f} ({error:.2g})" for kept, error in figures(dtype, rounding)]
            yield f"| {name} | {rounding} | {' | '.join(cells)} |"


def figures(dtype: str, rounding: Literal["nearest", "stochastic"]) -> Iterator[Figure]:
    """By the size of the LoRA."""
    with tempfile.TemporaryDirectory() as folder:
        base = write_model(Path(folder), dtype)
        for percent in PERCENT:
            lora = write_lora(Path(folder), base, percent)
            output = Path(folder) / "out"
            report = pm.bake(base, [lora], output, rounding=rounding, accept_loss=True, overwrite=True)
            (step,) = report.survival.steps
            if step.survival is None or report.survival.error is None:
                raise RuntimeError("nothing changed")
            yield step.survival, report.survival.error


def write_model(folder: Path, dtype: str) -> Path:
    """A model's folder with one file of weights."""
    rng = np.random.default_rng(0)
    tensors = {
        key(layer): rng.normal(0, 0.02, (SIZE, SIZE)).astype(np.float32).astype(NUMPY[dtype])
        for layer in LAYERS
    }
    tensors["model.embed_tokens.weight"] = rng.normal(0, 0.02, (8, SIZE)).astype(np.float16)
    (path := folder / "model").mkdir()
    write_safetensors(path / "model.safetensors", tensors, {"dtype": dtype})
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return path


def write_lora(folder: Path, base: Path, percent: float) -> Path:
    """A LoRA whose change has ``percent`` of each weight's norm."""
    rng = np.random.default_rng(1)
    norm = 0.02 * SIZE
    tensors = {}
    for layer in LAYERS:
        up, down = rng.normal(size=(SIZE, RANK)), rng.normal(size=(RANK, SIZE))
        down *= percent / 100 * norm / np.linalg.norm(up @ down)
        stem = key(layer).removesuffix(".weight")
        tensors[f"{stem}.lora_B.weight"] = up.astype(np.float32)
        tensors[f"{stem}.lora_A.weight"] = down.astype(np.float32)
    path = folder / "lora.safetensors"
    write_safetensors(path, tensors, {}, overwrite=True)
    return path


def key(layer: str) -> str:
    """The key of a layer's weight."""
    return f"model.layers.0.self_attn.{layer}.weight"


if __name__ == "__main__":
    main()
