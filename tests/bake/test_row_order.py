"""Adapters on q, k and v in one layer, stacked or head by head: each row lands in its own projection."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from baking import load, plan_of

import paramerge as pm
from paramerge.apply.steps import Step
from paramerge.cli.main import main
from paramerge.errors import FamilyError, ParamergeError, ShapeError, UsageError
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.interpretation import Interpretation

HEADS, WIDTH, D = 3, 4, 10
ROWS = 3 * HEADS * WIDTH
LAYER = "blocks.0.attn.qkv_proj"
Make = Callable[[Path], Path]

RNG = np.random.default_rng(11)
W, BIAS = RNG.standard_normal((ROWS, D)), RNG.standard_normal(ROWS)
UP, DOWN, DIFF_B = RNG.standard_normal((ROWS, 2)), RNG.standard_normal((2, D)), RNG.standard_normal(ROWS)
Q = np.linalg.qr(RNG.standard_normal((ROWS, 3)))[0]


def head_by_head(stacked: np.ndarray) -> np.ndarray:
    """Rows ``(projection, head, row)`` in the order ``(head, projection, row)``: the oracle."""
    split = stacked.reshape(3, HEADS, WIDTH, -1)
    return split.transpose(1, 0, 2, 3).reshape(stacked.shape)


def base(path: Path, *, norm: bool = True) -> Path:
    path.mkdir()
    tensors = {f"{LAYER}.weight": W, f"{LAYER}.bias": BIAS, "blocks.0.attn.out_proj.weight": np.eye(D)}
    if norm:
        tensors["blocks.0.attn.q_norm.weight"] = np.ones(WIDTH)
    write_safetensors(path / "model.safetensors", tensors, {})
    (path / "config.json").write_text(json.dumps({"model_type": "minimax_h3"}))
    return path


def lora(path: Path) -> Path:
    stem = f"diffusion_model.{LAYER}"
    tensors = {f"{stem}.lora_up.weight": UP, f"{stem}.lora_down.weight": DOWN, f"{stem}.diff_b": DIFF_B}
    write_safetensors(path, tensors, {})
    return path


def para(path: Path) -> Path:
    write_safetensors(path, {f"model.{LAYER}.para_B": Q}, {"format": "para"})
    return path


def baked(folder: Path, path: Path, output: Path, rows: str) -> dict[str, np.ndarray]:
    adapter = open_adapter(path, interpretation=Interpretation(rows=rows))
    pm.bake(folder, [adapter], output)
    tensors = load(output / "model.safetensors").tensors
    return {key: np.asarray(value, np.float64) for key, value in tensors.items()}


@pytest.mark.parametrize("rows", ["stacked", f"stacked:{WIDTH}", "interleaved"])
@pytest.mark.parametrize("make", [lora, para])
def test_rows_land_in_their_own_projection(make: Make, rows: str, tmp_path: Path) -> None:
    found = baked(base(tmp_path / "b"), make(tmp_path / "a.safetensors"), tmp_path / "out", rows)
    order = np.asarray if rows == "interleaved" else head_by_head
    if make is para:
        basis = order(Q)
        wanted, bias = W - basis @ (basis.T @ W), BIAS
    else:
        wanted, bias = W + order(UP @ DOWN), BIAS + order(DIFF_B)
    # products of 3 terms, then a sum: a few float64 roundings of the largest number that is met
    bound = 16 * np.finfo(np.float64).eps * np.abs(wanted).max() * ROWS
    assert np.abs(found[f"{LAYER}.weight"] - wanted).max() <= bound
    assert np.abs(found[f"{LAYER}.bias"] - bias).max() <= bound
    assert np.array_equal(found["blocks.0.attn.out_proj.weight"], np.eye(D))


def test_the_order_is_in_the_recipe_and_replayed(tmp_path: Path) -> None:
    folder, path = base(tmp_path / "b"), lora(tmp_path / "l.safetensors")
    out, again = tmp_path / "1" / "out", tmp_path / "2" / "out"
    words = ["bake", "--base", folder, "--adapter", path, "--rows", f"stacked:{WIDTH}", "-o", out]
    for parent in (out, again):
        parent.parent.mkdir()
    for line in (words, ["replay", out, "--models", tmp_path, "-o", again]):
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in line])
        assert not caught.value.code
    metadata = load(out / "model.safetensors").metadata
    assert json.loads(metadata["paramerge.recipe"])["options"]["rows"] == f"stacked:{WIDTH}"
    for file in out.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_the_width_of_a_head_must_be_known(tmp_path: Path) -> None:
    folder, path = base(tmp_path / "b", norm=False), lora(tmp_path / "l.safetensors")
    for rows, error in (("stacked", UsageError), ("stacked:5", ShapeError)):
        adapter = open_adapter(path, interpretation=Interpretation(rows=rows))
        with pytest.raises(error):
            pm.plan_bake(folder, [adapter])


@pytest.mark.parametrize("rows", ["", "stacked:", "stacked:0", "interleaved:4", "Stacked", "stacked:1e3"])
def test_other_orders_are_refused(rows: str) -> None:
    with pytest.raises(UsageError, match="no such order"):
        Interpretation(rows=rows)


def test_an_order_is_refused_where_the_base_has_one_only(tmp_path: Path) -> None:
    path = tmp_path / "b"
    base(path)
    (path / "config.json").write_text(json.dumps({"model_type": "another"}))
    adapter = open_adapter(lora(tmp_path / "l.safetensors"), interpretation=Interpretation(rows="stacked"))
    with pytest.raises(UsageError, match="one order only"):
        pm.plan_bake(path, [adapter])


def test_families_without_an_order_of_rows_are_refused(tmp_path: Path) -> None:
    """Rotations mix rows of a block: in another order they are other blocks."""
    path = tmp_path / "o.safetensors"
    blocks = 0.1 * RNG.standard_normal((ROWS // WIDTH, WIDTH, WIDTH))
    write_safetensors(path, {f"lora_unet_{LAYER.replace('.', '_')}.oft_blocks": blocks}, {})
    adapter = open_adapter(path, interpretation=Interpretation(rows="stacked"))

    with pytest.raises(ParamergeError) as caught:
        pm.plan_bake(base(tmp_path / "b"), [adapter])
    assert "cannot be put into the base's order" in str(caught.value)


def test_without_an_order_it_is_refused_with_both_named(tmp_path: Path) -> None:
    for diff_alone in (False, True):
        path = lora(tmp_path / f"{diff_alone}.safetensors")
        if diff_alone:  # a bias has the rows of its layer
            write_safetensors(path, {f"diffusion_model.{LAYER}.diff_b": DIFF_B}, {})
        folder = tmp_path / f"b{diff_alone}"
        with pytest.raises(FamilyError, match="order of the rows") as caught:
            plan_of(base(folder), Step("adapter", path))
        assert "stacked" in str(caught.value.hint) and "interleaved" in str(caught.value.hint)
