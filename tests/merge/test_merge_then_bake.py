"""Baking a merged adapter is baking its inputs: the same weights, to the rounding of the adapter's dtype."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from baking import load, lora_file, para_file, plan_of, random_bases, random_factors, shapes_of, small_model
from merging import merge

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake

FLOAT32 = 1e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    base = small_model(folder / "base.safetensors", dtype="F32")
    shapes = shapes_of(base)
    layers = [layer for layer in shapes if layer.endswith(("to_q", "conv1", "proj_out", "k_proj"))][::2]
    return {
        "base": base,
        "p": para_file(folder / "p.safetensors", random_bases(shapes, layers, 3, seed=0), dtype="F32"),
        "q": para_file(folder / "q.safetensors", random_bases(shapes, layers[3:], 2, seed=1), dtype="F32"),
        "l": lora_file(folder / "l.safetensors", random_factors(shapes, layers, 3, seed=2), 1.5, "F32"),
        "m": lora_file(folder / "m.safetensors", random_factors(shapes, layers[2:], 2, seed=3), 4.0, "F32"),
    }


def weights_after(
    output: Path, base: Path, steps: Sequence[Step], **options: object
) -> dict[str, np.ndarray]:
    bake(plan_of(base, *steps, **options), output)
    return {key: value.astype(np.float64) for key, value in load(output).tensors.items()}


def check_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], base: Path) -> None:
    """Equal everywhere, changed somewhere."""
    before = load(base).tensors
    assert one.keys() == other.keys() == before.keys()
    changed = 0
    for key, value in one.items():
        difference = np.linalg.norm(value - other[key])
        assert difference <= FLOAT32 * np.linalg.norm(before[key].astype(np.float64)), key
        changed += not np.array_equal(value, before[key])
    assert changed > 20


def test_paras(files: dict[str, Path], tmp_path: Path) -> None:
    both = [Step("para", files["p"]), Step("para", files["q"])]
    merged = Step("para", merge(tmp_path / "pq.safetensors", files["q"], files["p"]).output)
    one = weights_after(tmp_path / "1.safetensors", files["base"], both)
    other = weights_after(tmp_path / "2.safetensors", files["base"], [merged])
    check_same(one, other, files["base"])


def test_paras_within_a_boundary_by_energy(files: dict[str, Path], tmp_path: Path) -> None:
    """The bake chooses by energy, and so does the merge that is given the base."""
    both = [Step("para", files["p"]), Step("para", files["q"])]
    report = merge(tmp_path / "pq.safetensors", files["p"], files["q"], base=files["base"], gamma=1 / 25)
    assert any(0 < layer.rank < layer.full_rank for layer in report.layers)
    one = weights_after(tmp_path / "1.safetensors", files["base"], both, gamma=1 / 25)
    other = weights_after(tmp_path / "2.safetensors", files["base"], [Step("para", report.output)])
    check_same(one, other, files["base"])


def test_loras(files: dict[str, Path], tmp_path: Path) -> None:
    both = [Step("lora", files["l"], 0.7), Step("lora", files["m"], -0.2)]
    merged = merge(tmp_path / "lm.safetensors", f"{files['l']}@0.7", f"{files['m']}@-0.2").output
    one = weights_after(tmp_path / "1.safetensors", files["base"], both)
    other = weights_after(tmp_path / "2.safetensors", files["base"], [Step("lora", merged)])
    check_same(one, other, files["base"])


def test_paras_then_loras_as_one_lora(files: dict[str, Path], tmp_path: Path) -> None:
    """T5 through the whole chain of files."""
    steps = [Step("para", files["p"]), Step("para", files["q"]), Step("lora", files["l"], 0.5)]
    inputs = (files["p"], files["q"], f"{files['l']}@0.5")
    merged = merge(tmp_path / "pql.safetensors", *inputs, base=files["base"]).output
    one = weights_after(tmp_path / "1.safetensors", files["base"], steps)
    other = weights_after(tmp_path / "2.safetensors", files["base"], [Step("lora", merged)])
    check_same(one, other, files["base"])
