"""An alpha in the factors: no digits are lost where they need not be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from adapter_files import kohya_layer, random_factors, save
from hypothesis import given
from hypothesis import strategies as st
from strategies import law

from paramerge.adapters.folding import folded
from paramerge.convert.convert import convert
from paramerge.convert.request import ConvertOptions
from paramerge.files.dtypes import FLOATS, NUMPY
from paramerge.formats import open_adapter
from paramerge.merge.request import Input


def lost(up: np.ndarray, down: np.ndarray, scale: float, dtype: str) -> float:
    """The relative error of the product when the folded factors are stored."""
    B, A = (x.astype(NUMPY[dtype]).astype(np.float64) for x in folded(up, down, scale, dtype))
    wanted = scale * up @ down
    return float(np.linalg.norm(B @ A - wanted) / np.linalg.norm(wanted))


@law
@given(
    exponent=st.integers(-12, 12),
    small=st.integers(-16, 4),
    other=st.integers(-8, 4),
    mantissa=st.sampled_from([1.0, -1.0, 1.5, 1.9]),
    seed=st.integers(0, 3),
)
def test_a_scale_is_shared_so_that_fp16_keeps_its_digits(
    exponent: int, small: int, other: int, mantissa: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    up = (rng.standard_normal((24, 4)) * 2.0**small).astype(np.float16).astype(np.float64)
    down = (rng.standard_normal((4, 20)) * 2.0**other).astype(np.float16).astype(np.float64)
    # half a unit in the last place, and half of F16's smallest step beside the size that both can have
    size = 2.0 ** ((small + other + exponent) / 2)
    bound = 8 * 2.0**-25 / size + (2.0**-11 if mantissa in (1.5, 1.9) else 0)
    assert lost(up, down, mantissa * 2.0**exponent, "F16") <= bound
    assert lost(up, down, abs(mantissa) * 2.0**exponent, "F32") <= 2.0**-24


@pytest.mark.parametrize("exponent", range(-10, 11))
def test_powers_of_two_cost_nothing_where_there_is_room(exponent: int) -> None:
    rng = np.random.default_rng(0)
    up, down = (rng.integers(1, 16, shape) / 16 for shape in ((8, 2), (2, 8)))
    assert lost(up, down, -(2.0**exponent), "F16") == 0


def test_a_scale_of_zero() -> None:
    up, down = folded(np.ones((3, 1)), np.ones((1, 3)), 0.0, "F16")
    assert not (up @ down).any()


def test_ranks_that_differ_are_told_to_diffusers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors, stem = {}, "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1"
    for name, rank in (("to_q", 4), ("to_k", 8), ("to_v", 4)):
        up, down = random_factors(rng, 16, 16, rank)
        tensors |= kohya_layer(f"{stem}_{name}", up, down, 4.0)
    lora, out = save(tmp_path / "l.safetensors", tensors), tmp_path / "d.safetensors"
    report = convert([Input(lora)], [open_adapter(lora)], out, ConvertOptions("diffusers"))
    assert any("0.34" in note for note in report.notes)
    found = json.loads(open_adapter(out).metadata["lora_adapter_metadata"])
    assert (found["unet.r"], found["unet.lora_alpha"]) == (4, 4)
    assert list(found["unet.rank_pattern"].values()) == [8]
    assert found["unet.alpha_pattern"] == found["unet.rank_pattern"]
    before, after = (open_adapter(path).modules for path in (lora, out))
    for name, module in before.items():
        np.testing.assert_allclose(after[name].norm(), module.norm(), rtol=1e-6)
    equal = {key: value for key, value in tensors.items() if "to_k" not in key}
    save(lora, equal)
    out.unlink()
    convert([Input(lora)], [open_adapter(lora)], out, ConvertOptions("diffusers"))
    assert "lora_adapter_metadata" not in open_adapter(out).metadata


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_that_an_adapter_can_have_is_folded(dtype: str) -> None:
    rng = np.random.default_rng(0)
    up, down = (rng.standard_normal(shape).astype(NUMPY[dtype]) for shape in ((6, 2), (2, 5)))
    new_up, new_down = folded(up.astype(np.float64), down.astype(np.float64), 0.5, dtype)
    assert np.array_equal(new_up @ new_down, 0.5 * up.astype(np.float64) @ down.astype(np.float64))
    assert all(np.array_equal(new, new.astype(NUMPY[dtype]).astype(np.float64)) for new in (new_up, new_down))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("scale", [1e300, 1.0, 1e-300])
@pytest.mark.parametrize("size", [1e307, 1e-300, 1e-310, math.inf, math.nan])
def test_numbers_of_any_size_are_folded_or_left_as_they_are(size: float, scale: float, dtype: str) -> None:
    """What is beyond the dtype is for the writing to refuse, with the layer's name."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((4, 2)) * size, rng.standard_normal((2, 3)) * size
    with np.errstate(all="ignore"):
        up, down = folded(*factors, scale, dtype)
    assert up.shape == (4, 2) and down.shape == (2, 3)
