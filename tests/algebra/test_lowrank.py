"""LoRAs as thin products: truncation against a dense SVD, exact sums, and LoRAs of rank 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    LIBRARIES,
    Lora,
    Matrix,
    bound,
    generators,
    law,
    lora,
    norm2,
    orthogonal,
    stored,
    widened,
)

from paramerge.algebra import concat_loras, leading_output_directions, truncate_lora


@st.composite
def loras(draw: st.DrawFn) -> Lora:
    """Wide and tall, of ranks from 0 to more than fits, at scales from 1e-8 to 1e8."""
    d, k, r = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(0, 10))
    factors = lora(draw(generators()), d, k, r)
    scale = 10.0 ** draw(st.integers(-8, 8))
    return Lora(scale * factors.up, factors.down / scale)


def with_singular_values(rng: np.random.Generator, s: list[float], d: int = 9, k: int = 7) -> Lora:
    """A LoRA whose product has exactly these, behind a mixing of its factors."""
    r = len(s)
    mix = orthogonal(rng, r)
    return Lora((orthogonal(rng, d)[:, :r] * s) @ mix, mix.T @ orthogonal(rng, k)[:, :r].T)


@law
@given(loras(), st.integers(0, 10))
def test_truncation_is_the_best_of_its_rank(factors: Lora, rank: int) -> None:
    """Eckart and Young, against the SVD of the dense product."""
    product, most = factors.product, min(*factors.product.shape, factors.up.shape[1])
    cut = truncate_lora(factors.up, factors.down, rank=rank)
    kept = min(rank, most)
    assert cut.rank == kept
    assert cut.up.shape == (product.shape[0], kept)
    assert cut.down.shape == (kept, product.shape[1])
    s = np.linalg.svd(product, compute_uv=False)
    norm = norm2(factors.up) * norm2(factors.down)
    limit = bound(product.shape, (factors.up.shape[1],), norm=norm)
    assert len(cut.singular_values) == most
    np.testing.assert_allclose(cut.singular_values, s[:most], atol=limit)
    distance = float(np.linalg.norm(product - cut.up @ cut.down))
    assert distance == pytest.approx(np.linalg.norm(s[kept:]), abs=4 * limit)
    total = float(np.linalg.norm(s))
    assert cut.error == pytest.approx(
        distance / total if total else 0.0, abs=4 * limit / total if total else 0
    )
    for factor in (cut.up.T, cut.down):  # split evenly: both factors have the roots for norms
        np.testing.assert_allclose(np.linalg.norm(factor, axis=1) ** 2, s[:kept], atol=4 * limit)


@law
@given(generators(), st.floats(0.0, 1.0))
def test_energy_keeps_the_fewest_directions_that_hold_the_share(
    rng: np.random.Generator, energy: float
) -> None:
    s = [8.0, 4.0, 2.0, 1.0]
    factors = with_singular_values(rng, s)
    shares = np.cumsum(np.square(s)) / np.sum(np.square(s))
    if min(abs(np.append(shares, 0.0) - energy)) < 1e-9:  # at a step either side may win by rounding
        return
    fewest = 1 + int(np.sum(shares < energy))
    cut = truncate_lora(factors.up, factors.down, energy=energy)
    assert cut.rank == fewest
    assert 1.0 - cut.error**2 >= energy - bound((9,))
    both = truncate_lora(factors.up, factors.down, energy=energy, rank=2)
    assert both.rank == min(2, fewest)
    directions = leading_output_directions(factors.up, factors.down, energy=energy)
    assert directions.shape == (9, fewest)


def test_energy_at_its_ends() -> None:
    factors = with_singular_values(np.random.default_rng(2), [3.0, 2.0, 1e-5])
    assert truncate_lora(factors.up, factors.down, energy=0.0).rank == 0
    assert truncate_lora(factors.up, factors.down, energy=1.0).rank == 3
    assert truncate_lora(factors.up, factors.down, energy=9 / 13).rank in (1, 2)
    assert truncate_lora(factors.up, factors.down, energy=9 / 13 - 1e-9).rank == 1
    assert truncate_lora(factors.up, factors.down, energy=9 / 13 + 1e-9).rank == 2
    flat = with_singular_values(np.random.default_rng(3), [1.0, 1.0, 1.0, 1.0])
    for energy, rank in ((0.1, 1), (0.4, 2), (0.6, 3), (0.9, 4)):
        assert truncate_lora(flat.up, flat.down, energy=energy).rank == rank
    exact = np.diag([2.0, 1.0, 1.0])
    assert truncate_lora(exact, np.eye(3), energy=5 / 6 - 1e-12).rank == 2
    assert truncate_lora(exact, np.eye(3), energy=0.5).rank == 1


def test_directions_that_only_rounding_makes_are_not_kept() -> None:
    rng = np.random.default_rng(5)
    thin = with_singular_values(rng, [3.0, 2.0])
    wide_up = np.concatenate([thin.up, thin.up], axis=1)
    wide_down = np.concatenate([thin.down, thin.down])
    cut = truncate_lora(wide_up, wide_down)
    assert cut.rank == 2
    assert cut.error <= bound((9, 7))
    assert len(cut.singular_values) == 4
    faint = with_singular_values(rng, [1.0, 1e-4])
    assert truncate_lora(faint.up, faint.down, rtol=0.9e-4).rank == 2
    assert truncate_lora(faint.up, faint.down, rtol=1.1e-4).rank == 1
    assert truncate_lora(faint.up, faint.down, rtol=1.1e-4).error == pytest.approx(1e-4, rel=1e-6)
    assert leading_output_directions(faint.up, faint.down, rtol=1.1e-4).shape == (9, 1)


@pytest.mark.parametrize(("d", "k", "roundings"), [(3, 3, 16), (40, 2, 40), (2, 40, 40)])
def test_the_default_cut_is_sixteen_roundings_or_one_for_each_row_or_column(
    d: int, k: int, roundings: int
) -> None:
    up, down = np.eye(d, 2), np.eye(2, k)
    for share, rank in ((0.9, 1), (1.1, 2)):
        up[1, 1] = share * roundings * 2.0**-52
        assert truncate_lora(up, down).rank == rank


@law
@given(loras())
def test_leading_output_directions_are_the_left_singular_vectors(factors: Lora) -> None:
    product = factors.product
    Q = leading_output_directions(factors.up, factors.down)
    most = min(*product.shape, factors.up.shape[1])
    assert Q.shape == (product.shape[0], most)
    limit = bound(product.shape, (factors.up.shape[1],))
    assert norm2(Q.T @ Q - np.eye(most)) <= limit
    norm = norm2(factors.up) * norm2(factors.down)
    removed = np.linalg.norm(Q.T @ product, axis=1)
    s = np.linalg.svd(product, compute_uv=False)[:most]
    np.testing.assert_allclose(removed, s, atol=limit * norm)
    one = leading_output_directions(factors.up, factors.down, rank=1)
    np.testing.assert_array_equal(one, Q[:, :1])


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_lora_of_zeros_or_of_rank_0_is_one_and_stays_one(library: str) -> None:
    for r in (0, 2):
        up, down = stored(np.zeros((4, r)), "float64", library), stored(np.zeros((r, 3)), "float64", library)
        cut = truncate_lora(up, down)
        assert (cut.rank, cut.error) == (0, 0.0)
        assert (tuple(cut.up.shape), tuple(cut.down.shape)) == ((4, 0), (0, 3))
        assert tuple(leading_output_directions(up, down).shape) == (4, 0)
        again = truncate_lora(cut.up, cut.down, rank=5, energy=1.0)
        assert again.rank == 0
        ups, downs = concat_loras([cut.up, up], [cut.down, down], [1.0, 2.0])
        assert (tuple(ups.shape), tuple(downs.shape)) == ((4, r), (r, 3))


@st.composite
def several(draw: st.DrawFn) -> tuple[list[Lora], list[float]]:
    rng = draw(generators())
    d, k = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    ranks = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    scales = [draw(st.sampled_from([1.0, -0.5, 0.0, 3.0])) for _ in ranks]
    return [lora(rng, d, k, r) for r in ranks], scales


@law
@given(several())
def test_concatenation_is_the_exact_sum(job: tuple[list[Lora], list[float]]) -> None:
    loras, scales = job
    up, down = concat_loras([one.up for one in loras], [one.down for one in loras], scales)
    rank = sum(one.up.shape[1] for one in loras)
    assert up.shape == (loras[0].up.shape[0], rank)
    assert down.shape == (rank, loras[0].down.shape[1])
    total = sum(s * one.product for s, one in zip(scales, loras, strict=True))
    size = sum(abs(s) * norm2(one.up) * norm2(one.down) for s, one in zip(scales, loras, strict=True))
    assert norm2(up @ down - total) <= bound(up.shape, down.shape, norm=size)
    np.testing.assert_array_equal(down, np.concatenate([one.down for one in loras]))


@law
@given(loras())
def test_one_lora_at_scale_1_gives_itself_back(factors: Lora) -> None:
    up, down = concat_loras([factors.up], [factors.down], [1.0])
    np.testing.assert_array_equal(up, factors.up)
    np.testing.assert_array_equal(down, factors.down)


@law
@given(several())
def test_truncating_a_concatenation_to_all_it_has_loses_nothing(job: tuple[list[Lora], list[float]]) -> None:
    loras, scales = job
    up, down = concat_loras([one.up for one in loras], [one.down for one in loras], scales)
    cut = truncate_lora(up, down)
    size = norm2(up) * norm2(down)
    assert norm2(cut.up @ cut.down - up @ down) <= bound(up.shape, down.shape, norm=4 * size)
    assert cut.rank <= min(*up.shape, down.shape[1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_truncation_in_every_dtype(dtype: str, library: str) -> None:
    @law
    @given(generators(), st.integers(0, 4))
    def check(rng: np.random.Generator, rank: int) -> None:
        factors = lora(rng, 7, 6, 4)
        up, down = stored(factors.up, dtype, library), stored(factors.down, dtype, library)
        exact: Matrix = widened(up) @ widened(down)
        s = np.linalg.svd(exact, compute_uv=False)
        cut = truncate_lora(up, down, rank=rank)
        limit = bound((7, 6), norm=4 * norm2(widened(up)) * norm2(widened(down)), eps=2.0**-23)
        distance = float(np.linalg.norm(exact - widened(cut.up) @ widened(cut.down)))
        assert distance == pytest.approx(math.sqrt(np.sum(s[rank:] ** 2)), abs=limit)

    check()
