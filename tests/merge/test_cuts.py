"""The magnitude that so many elements have at least: against a sort, whatever the sample says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramerge.merge.checkpoints import cuts
from paramerge.merge.checkpoints.cuts import EVERYTHING, Cut, Sampled


def found(
    values: np.ndarray, count: int, bracket: tuple[float, float] | None = None, block: int = 50
) -> float | None:
    sample = Sampled(len(values))
    starts = range(0, len(values), block)
    for start in starts:
        sample.look(values[start : start + block])
    cut = Cut(count, len(values), sample.bracket(count, len(values)) if bracket is None else bracket)
    for start in reversed(starts):
        cut.look(values[start : start + block])
    return cut.value()


def expected(values: np.ndarray, count: int) -> float:
    if count <= 0:
        return math.inf
    return 0.0 if count >= len(values) else float(np.sort(values)[::-1][count - 1])


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 3000),
    levels=st.sampled_from([1, 2, 5, 10**6]),
    share=st.floats(0, 1),
)
def test_is_that_of_a_sort(seed: int, size: int, levels: int, share: float) -> None:
    """Also among many equal ones: 1, 2 or 5 different magnitudes, zeros among them."""
    values = (np.random.default_rng(seed).integers(0, levels, size) / levels).astype(np.float32)
    count = round(share * size)
    assert found(values, count, EVERYTHING) == expected(values, count)
    assert found(values, count) == expected(values, count)  # all are in the sample


@pytest.mark.parametrize("count", [1, 10, 20_000, 50_000, 99_999])
def test_a_sample_brackets_it(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "_SAMPLES", 256)
    values = np.abs(np.random.default_rng(0).standard_normal(100_000))
    assert found(values, count, block=1000) == expected(values, count)
    low, high = EVERYTHING
    sample = Sampled(len(values))
    sample.look(values)
    assert len(np.concatenate(sample._found)) <= 2 * 256
    narrow = sample.bracket(20_000, len(values))
    assert low < narrow[0] < narrow[1] < high


def test_a_bracket_that_misses_says_so() -> None:
    values = np.arange(1000.0)
    assert found(values, 100, (950.0, 990.0)) is None
    assert found(values, 100, (100.0, 500.0)) is None
    assert found(values, 100, (900.0, 950.0)) == 900.0
    assert found(values, 101, (899.0, 950.0)) == 899.0
