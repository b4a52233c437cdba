"""Adapters for the layers of :mod:`quantised_models`, and what they do to a weight in float64."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from quantised_models import LAYERS, D

from paramerge.files.writer import write_safetensors


def lora_on(
    folder: Path, layers: Sequence[str] = LAYERS[:1], scale: float = 0.01
) -> tuple[Path, dict[str, np.ndarray]]:
    """A LoRA in PEFT's format, and its change of each layer in float64."""
    rng = np.random.default_rng(3)
    tensors, changes = {}, {}
    for layer in layers:
        A, B = (rng.normal(0, scale, shape).astype(np.float32) for shape in ((4, D), (D, 4)))
        tensors |= {f"base_model.model.{layer}.lora_{side}.weight": x for side, x in (("A", A), ("B", B))}
        changes[layer] = B.astype(np.float64) @ A.astype(np.float64)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors, {})
    names = sorted({layer.rpartition(".")[2] for layer in layers})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, changes
