"""Results are rounded once, also where the way from float64 leads over float32; signs of zeros stay."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from baking import DTYPES, load, plan_of

from paramerge.apply.rounding import Rounder
from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.files.writer import write_safetensors

TARGETS = {
    "BF16": (torch.bfloat16, np.dtype(ml_dtypes.bfloat16)),
    "F16": (torch.float16, np.dtype(np.float16)),
    "F8_E4M3": (torch.float8_e4m3fn, np.dtype(ml_dtypes.float8_e4m3fn)),
    "F8_E5M2": (torch.float8_e5m2, np.dtype(ml_dtypes.float8_e5m2)),
}


def grid(dtype: str) -> np.ndarray:
    """All finite numbers of a dtype from 0 up, float64."""
    kind = TARGETS[dtype][1]
    bits = np.arange(1 << (8 * kind.itemsize - 1), dtype=np.uint16 if kind.itemsize == 2 else np.uint8)
    with np.errstate(invalid="ignore"):  # NaN among them
        values = bits.view(kind).astype(np.float64)
    return values[np.isfinite(values)]


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    target = torch.empty(values.shape, dtype=TARGETS[dtype][0])
    Rounder().put(torch.from_numpy(values), target)
    return target.to(torch.float64).numpy()


@pytest.mark.parametrize("dtype", TARGETS)
@pytest.mark.parametrize("sign", [1, -1])
def test_values_beside_a_middle_go_to_their_own_side(dtype: str, sign: int) -> None:
    """Between all neighbours: the middle goes to the even one, anything beside it to its side."""
    low = grid(dtype)[:-1]
    high = grid(dtype)[1:]
    middle = (low + high) / 2  # exact in float64
    normal = middle > 2.0**-120
    low, high, middle = low[normal], high[normal], middle[normal]
    near = 2.0**-40 * (high - low)
    for values, wanted in ((middle - near, low), (middle + near, high)):
        assert np.array_equal(rounded(sign * values, dtype), sign * wanted)
    ties = rounded(sign * middle, dtype)
    last = np.abs(ties).astype(TARGETS[dtype][1]).view(np.uint16 if "16" in dtype else np.uint8) & 1
    assert not last.any()


@pytest.mark.parametrize("dtype", TARGETS)
def test_random_values_are_nearest(dtype: str) -> None:
    rng = np.random.default_rng(0)
    low = grid(dtype)[:-1]
    x = rng.choice(low[low < 100], 3000) * (1 + rng.uniform(-0.1, 0.1, 3000))
    found = rounded(x, dtype)
    steps = grid(dtype)
    for value, got in zip(x[:500], found[:500], strict=True):
        place = int(np.searchsorted(steps, value))
        nearest = min(abs(Fraction(steps[i]) - Fraction(value)) for i in {max(place - 1, 0), place})
        assert abs(Fraction(got) - Fraction(value)) == nearest


@pytest.mark.parametrize("dtype", TARGETS)
def test_zeros_keep_their_signs(dtype: str) -> None:
    found = rounded(np.array([[0.0, -0.0, 1e-300, -1e-300]]), dtype)
    assert np.signbit(found).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("family", ["lora", "diff"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_zero_that_nothing_changes_keeps_its_sign(tmp_path: Path, dtype: str, family: str) -> None:
    key = "model.layers.0.self_attn.q_proj"
    folder = tmp_path / "base"
    folder.mkdir()
    W = np.full((6, 4), -0.0)
    W[5] = 1
    tensors = {f"{key}.weight": W.astype(DTYPES[dtype]), "model.embed_tokens.weight": W.astype(np.float16)}
    write_safetensors(folder / "model.safetensors", tensors, {})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    up, down = np.zeros((6, 2), np.float32), np.ones((2, 4), np.float32)
    up[1], down[:, 2] = 1, 0
    parts = {"lora_B.weight": up, "lora_A.weight": down} if family == "lora" else {"diff": up @ down}
    adapter = tmp_path / "a.safetensors"
    write_safetensors(adapter, {f"{key}.{end}": value for end, value in parts.items()}, {})
    bake(plan_of(folder, Step("adapter", adapter)), tmp_path / "out")
    found = load(tmp_path / "out").tensors[f"{key}.weight"].astype(np.float64)
    assert np.array_equal(found, W + up @ down)
    assert np.array_equal(np.signbit(found), np.signbit(W) & ((up @ down) == 0))
