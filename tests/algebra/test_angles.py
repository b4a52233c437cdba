"""Principal angles: against SciPy, accurate down to 1e-9, and where sharing and crossing begin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from strategies import Matrix, Pair, bound, families, generators, invertible, law, pair_at, pairs

from paramerge.algebra import (
    compare_subspaces,
    friedrichs_cosine,
    joint_basis,
    principal_angles,
    removed_rank_joint,
    removed_rank_sequential,
    sequential_error,
    shared_dimension,
)

TINY = [1e-3, 1e-6, 1e-9, 1e-12]


@law
@given(families(2, 2))
def test_angles_are_those_of_scipy(bases: list[Matrix]) -> None:
    first, second = bases
    found = principal_angles(first, second)
    if 0 in (first.shape[1], second.shape[1]):
        assert found.shape == (0,)
        return
    oracle = np.sort(scipy.linalg.subspace_angles(first, second))
    np.testing.assert_allclose(found, oracle, atol=bound(first.shape, norm=4.0))


@pytest.mark.parametrize("t", TINY)
@pytest.mark.parametrize("side", ["near 0", "near 90 degrees"])
def test_tiny_angles_keep_their_digits(t: float, side: str) -> None:
    """To the rounding of the bases, where the arc cosine alone loses every digit below 1e-8."""
    rng = np.random.default_rng(3)
    angle = t if side == "near 0" else math.pi / 2 - t
    pair = pair_at(rng, 8, [angle, 0.8])
    found = principal_angles(pair.Q1, pair.Q2)
    assert np.abs(found - pair.angles).max() <= bound((8,))
    assert (np.diff(found) >= 0).all()
    if side == "near 0" and t <= 1e-9:  # what the textbook formula does
        naive = np.arccos(np.clip(np.linalg.svd(pair.Q1.T @ pair.Q2, compute_uv=False), 0.0, 1.0))
        assert abs(naive.min() - t) > 0.5 * t


def test_tiny_angles_in_single_precision() -> None:
    e = np.eye(3, dtype=np.float32)
    first, second = e[:, :1], np.array([[1.0], [1e-6], [0.0]], dtype=np.float32)
    assert principal_angles(first, second)[0] == pytest.approx(1e-6, rel=1e-5)
    assert principal_angles(first, second).dtype == np.float32


@law
@given(pairs(), generators())
def test_any_basis_of_the_span_will_do(pair: Pair, rng: np.random.Generator) -> None:
    G, H = (invertible(rng, r) for r in pair.ranks)
    found = principal_angles(pair.Q1 @ G, pair.Q2 @ H)
    np.testing.assert_allclose(found, pair.angles, atol=bound(pair.joint.shape, norm=10.0))


@pytest.mark.parametrize("t", [1e-6, 1e-4, 1e-2, 0.3, 1.0])
def test_what_is_shared_is_what_the_joint_basis_merges(t: float) -> None:
    pair = pair_at(np.random.default_rng(4), 7, [t, 1.4])
    cut = math.tan(t / 2)
    for rtol, shared in ((1.05 * cut, 1), (0.95 * cut, 0)):
        compared = compare_subspaces(pair.Q1, pair.Q2, rtol=rtol)
        assert compared.shared == shared_dimension(pair.Q1, pair.Q2, rtol=rtol) == shared
        assert compared.joint_rank == joint_basis([pair.Q1, pair.Q2], rtol=rtol).rank
        assert compared.joint_rank == removed_rank_joint([pair.Q1, pair.Q2], rtol=rtol)
        expected = math.cos(1.4) if shared else math.cos(t)
        assert compared.friedrichs_cosine == pytest.approx(expected, abs=bound((7,)))
        assert friedrichs_cosine(pair.Q1, pair.Q2, rtol=rtol) == compared.friedrichs_cosine


@law
@given(generators(), st.floats(-6.0, -2.0).map(lambda exponent: 10.0**exponent))
def test_a_cosine_at_the_cut_is_a_right_angle(rng: np.random.Generator, cosine: float) -> None:
    pair = pair_at(rng, 7, [0.5, math.acos(cosine)])
    for rtol, crossed in ((1.05 * cosine, 1), (0.95 * cosine, 0)):
        compared = compare_subspaces(pair.Q1, pair.Q2, rtol=rtol)
        assert compared.crossed == crossed
        assert compared.sequential_rank == 2 + crossed
        assert removed_rank_sequential([pair.Q1, pair.Q2], rtol=rtol) == 2 + crossed


def test_only_right_angles_have_no_friedrichs_cosine() -> None:
    e = np.eye(3)
    compared = compare_subspaces(e[:, :1], e[:, 1:])
    assert compared.friedrichs_cosine == 0.0
    assert (compared.shared, compared.crossed) == (0, 1)
    same = compare_subspaces(e[:, :2], e[:, :2])
    assert (same.shared, same.crossed, same.friedrichs_cosine) == (2, 0, 0.0)
    nothing = compare_subspaces(e[:, :0], e[:, :2])
    assert (nothing.ranks, nothing.shared, nothing.crossed) == ((0, 2), 0, 0)
    assert (nothing.joint_rank, nothing.sequential_rank, nothing.friedrichs_cosine) == (2, 2, 0.0)
    assert isinstance(same.friedrichs_cosine, float)


@law
@given(generators(), st.sampled_from([1e-6, 1e-4, 0.5]))
def test_nearly_equal_spans_have_the_largest_error_and_equal_ones_none(
    rng: np.random.Generator, t: float
) -> None:
    """The error of the sequence jumps: cos t for every t above the cut, 0 at 0."""
    pair = pair_at(rng, 5, [t])
    assert sequential_error([pair.Q1, pair.Q2]) == pytest.approx(math.cos(t), abs=bound((5,)))
    assert sequential_error([pair.Q1, pair.Q1]) <= bound((5,))
    assert sequential_error([pair.Q1, pair.Q2], rtol=t) <= 2 * t
