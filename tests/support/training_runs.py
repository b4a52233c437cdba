"""Trainings on tiny pipelines, and what is in their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from paramerge.training.config import TrainConfig


def settings(model: Path, pictures: Path, output: Path, **more: Any) -> TrainConfig:
    plain = {"instance_prompt": "a noto dog", "steps": 4, "rank": 2, "device": "cpu"}
    return TrainConfig(
        model=model, instance_folder=pictures, output=output, **{**plain, "learning_rate": 1e-2, **more}
    )


def tensors_of(adapter: Path) -> dict[str, torch.Tensor]:
    files = [adapter] if adapter.is_file() else sorted(adapter.rglob("*.safetensors"))
    return {f"{file.name} {key}": value for file in files for key, value in load_file(file).items()}


def same(a: Path, b: Path) -> bool:
    first, second = tensors_of(a), tensors_of(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


OPTIONS: dict[str, dict[str, Any]] = {
    "para": {"init": "orthonormal"},  # the default removes next to nothing in two steps
    "oft": {"subset": "sao", "rank": 4},
    "boft": {"subset": "sao", "rank": 4},
    "krona": {"krona_factors": (4, 2)},
    "textual-inversion": {"instance_prompt": "a <sks> dog", "initializer": "dog", "placeholder_vectors": 2},
}


SMOOTH = {"init": "orthonormal", "adam_epsilon": 1.0, "learning_rate": 1.0}
"""AdamW as plain descent: its first steps go by the signs of gradients, which rounding may turn."""
