"""Stochastic rounding: to a neighbour, right in the mean, and the same whatever the blocks and threads."""

from __future__ import annotations

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paramerge.apply.rounding import Rounder
from paramerge.apply.stochastic import RandomWords, StochasticRounder

TARGETS = {
    "F32": (torch.float32, np.dtype(np.float32)),
    "BF16": (torch.bfloat16, np.dtype(ml_dtypes.bfloat16)),
    "F16": (torch.float16, np.dtype(np.float16)),
    "F8_E4M3": (torch.float8_e4m3fn, np.dtype(ml_dtypes.float8_e4m3fn)),
    "F8_E5M2": (torch.float8_e5m2, np.dtype(ml_dtypes.float8_e5m2)),
}
NARROW = [dtype for dtype in TARGETS if dtype != "F32"]
Values = NDArray[np.float64]


def rounded(
    values: NDArray[np.floating], dtype: str, name: str = "x", seed: int = 0, first: int = 0
) -> Values:
    target = torch.empty(values.shape, dtype=TARGETS[dtype][0])
    StochasticRounder(name, dtype, seed).put(torch.from_numpy(values), target, first)
    return target.to(torch.float64).numpy()


def grid(dtype: str) -> Values:
    """All finite numbers of a narrow dtype, in order, float64."""
    kind = TARGETS[dtype][1]
    bits = np.arange(1 << 8 * kind.itemsize, dtype=np.uint16 if kind.itemsize == 2 else np.uint8)
    with np.errstate(invalid="ignore"):
        values = bits.view(kind).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("compute", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", NARROW)
def test_values_go_to_one_of_their_neighbours(dtype: str, compute: type) -> None:
    """Between all pairs of neighbours, subnormal numbers and both signs among them."""
    steps = grid(dtype)
    way = np.random.default_rng(0).uniform(0, 1, len(steps) - 1)
    values = (steps[:-1] + way * (steps[1:] - steps[:-1])).astype(compute)
    found = rounded(values, dtype)
    exact = values.astype(np.float64)
    inside = (exact > steps[:-1]) & (exact < steps[1:])  # float32 may round onto a number, or flush
    assert inside.mean() > 0.9
    assert np.all((found == steps[:-1]) | (found == steps[1:]) | ~inside)
    assert 0.3 < np.mean(found[inside] == steps[1:][inside]) < 0.7


@pytest.mark.parametrize("dtype", NARROW)
def test_numbers_of_the_dtype_stay(dtype: str) -> None:
    steps = grid(dtype)
    for seed in range(3):
        assert np.array_equal(rounded(steps, dtype, seed=seed), steps)
    single = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert np.array_equal(rounded(single, "F32"), single)
    assert np.array_equal(rounded(single.astype(np.float64), "F32"), single)


@pytest.mark.parametrize("dtype", TARGETS)
@pytest.mark.parametrize("size", [1.0, 1e-5, 1e-7, 100.0])
def test_the_mean_is_the_value(dtype: str, size: float) -> None:
    """Over many draws, within five standard errors of what one draw's spread is."""
    draws = 1 << 16
    kind = TARGETS[dtype][1]
    for value in size * np.random.default_rng(1).uniform(1, 2, 5) * [1, -1, 1, -1, 1]:
        found = rounded(np.full(draws, value), dtype)
        low, high = np.min(found), np.max(found)
        nearest = float(np.asarray(value).astype(kind))
        assert nearest in (low, high)
        share = (value - low) / (high - low) if high > low else 0.0
        error = (high - low) * np.sqrt(share * (1 - share) / draws)
        assert abs(found.mean() - value) <= 5 * error + abs(nearest - value) * (low == high)
        if low == high:  # a chance too small to be seen among the draws
            assert abs(nearest - value) < 20 / draws * abs(np.spacing(np.asarray(value).astype(kind)))


@pytest.mark.parametrize("dtype", TARGETS)
def test_zeros_keep_their_signs(dtype: str) -> None:
    found = rounded(np.array([0.0, -0.0, 1e-300, -1e-300]), dtype)
    assert np.array_equal(found, np.zeros(4))
    assert np.signbit(found).tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", TARGETS)
def test_beyond_the_range_it_is_as_rounding_to_nearest(dtype: str) -> None:
    kind = TARGETS[dtype][0]
    largest = torch.finfo(kind).max
    values = torch.tensor(
        [largest * f for f in (1, 1.001, 1.1, 3.0, 1e5)] + [np.inf, np.nan, 0.5], dtype=torch.float64
    )
    values = torch.cat([values, -values])
    wanted = torch.empty(len(values), dtype=kind)
    Rounder().put(values, wanted)
    found = rounded(values.numpy(), dtype)
    assert np.array_equal(found, wanted.to(torch.float64).numpy(), equal_nan=True)


@given(st.integers(1, 300), st.lists(st.integers(1, 299), max_size=5), st.sampled_from(list(TARGETS)))
def test_blocks_and_threads_are_all_one(count: int, cuts: list[int], dtype: str) -> None:
    values = np.random.default_rng(count).normal(size=count)
    ends = [0, *sorted({cut for cut in cuts if cut < count}), count]
    pieces = list(itertools.pairwise(ends))
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda piece: rounded(values[slice(*piece)], dtype, first=piece[0]), pieces))
    assert np.array_equal(np.concatenate(parts), rounded(values, dtype))


def test_names_and_seeds_have_their_own_bits() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    outcomes = {rounded(values, "F8_E4M3", name, seed).tobytes() for name in "ab" for seed in (0, 1)}
    assert len(outcomes) == 4


def test_the_bits_are_those_of_other_versions() -> None:
    """Replay depends on them: they may not change from version to version of NumPy or of paramerge."""
    words = RandomWords("unet.conv_in.weight", 7)
    assert np.array_equal(words.of(0, 1000)[13:], words.of(13, 987))
    digest = hashlib.sha256(words.of(0, 1 << 16).astype("<u4").tobytes()).hexdigest()
    assert digest == "844e1ecdee0b013458dba63766c02dbd640a9f4425fba8ec08698c06fd052e34"


def test_the_mean_of_a_layer_survives_in_plain_fp8() -> None:
    """Of a change of 0.5 percent of the weights nearest keeps next to nothing, and this all, in the mean."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(0, 0.02, (512, 512))).to(torch.float8_e4m3fn).to(torch.float64)
    change = torch.from_numpy(rng.normal(0, 1e-4, (512, 512)))
    nearest = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    Rounder().put(weight + change, nearest)
    found = torch.from_numpy(rounded((weight + change).numpy(), "F8_E4M3"))

    def carried(written: torch.Tensor) -> float:
        return float(((written - weight) * change).sum() / change.square().sum())

    spread = float((found - weight - change).norm() / change.norm()) / 512  # of a mean of independent errors
    assert carried(nearest.to(torch.float64)) < 0.1
    assert abs(carried(found) - 1) < 5 * spread
