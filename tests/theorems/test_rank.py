"""T1, T1a, T1b, T1c, T8, T14: what reducing a weight does to its rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from strategies import (
    ROUNDOFF,
    SMALLEST,
    Reduction,
    Weight,
    bound,
    generators,
    law,
    norm2,
    orthogonal,
    reductions,
    search,
    stored,
    weights,
    widened,
)

from paramerge.algebra import numerical_rank, orthonormalise, project, reduce, removed_rank


def rank_after(case: Reduction) -> int:
    """The rank of the reduced weight, against the weight before; column scales are taken out again."""
    weight = case.weight
    unscaled = reduce(weight.W, case.Q) / weight.column_scale
    return numerical_rank(unscaled, reference=norm2(weight.W / weight.column_scale), rtol=1e-10)


@law
@given(reductions())
def test_t1_rank_drops_by_the_dimension_of_the_intersection(case: Reduction) -> None:
    assert rank_after(case) == case.weight.rank - case.inside


@law
@given(reductions(("wide", "square", "tall", "deficient", "zero", "duplicated")))
def test_t1_removed_rank_counts_the_intersection(case: Reduction) -> None:
    assert removed_rank(case.Q, case.weight.W) == case.inside


@law
@given(weights(), st.data())
def test_t1a_a_basis_inside_the_column_space_drops_exactly_r(weight: Weight, data: st.DataObject) -> None:
    r = data.draw(st.integers(0, weight.rank))
    Q = (weight.column_space @ orthogonal(data.draw(generators()), weight.rank))[:, :r]
    assert rank_after(Reduction(weight, Q, r, 0)) == weight.rank - r


@law
@given(weights(("wide", "square", "scaled")), st.data())
def test_t1b_full_row_rank_loses_exactly_r_to_every_basis(weight: Weight, data: st.DataObject) -> None:
    d = weight.W.shape[0]
    if weight.rank < d:  # a scaled weight may be tall
        return
    r = data.draw(st.integers(0, d))
    Q = orthogonal(data.draw(generators()), d)[:, :r]
    assert rank_after(Reduction(weight, Q, r, 0)) == d - r


@law
@given(reductions(("tall", "deficient")))
def test_t1c_only_directions_orthogonal_to_the_column_space_change_nothing(case: Reduction) -> None:
    change = norm2(project(case.Q, case.weight.W))
    if case.inside == case.mixed == 0:
        assert change <= bound(case.weight.W.shape, norm=case.weight.norm)
    elif case.weight.rank:
        assert change > 1e-3 * case.weight.norm


def test_t1c_the_note_to_theorem_1_is_false() -> None:
    """Find a q outside col(W) that changes W by a lot, and the rank not at all."""
    case = find(
        reductions(("tall", "deficient")),
        lambda case: (
            case.mixed == case.Q.shape[1] == 1
            and norm2(project(case.Q, case.weight.W)) > 0.3 * case.weight.norm
        ),
        settings=search,
    )
    assert np.linalg.matrix_rank(np.hstack([case.weight.W, case.Q])) == case.weight.rank + 1  # q is outside
    assert numerical_rank(reduce(case.weight.W, case.Q)) == case.weight.rank
    assert removed_rank(case.Q, case.weight.W) == 0


@law
@given(st.floats(0.01, math.pi / 2 - 0.01))
def test_t1c_counterexample_in_closed_form(t: float) -> None:
    """W is a column, q at angle t to it: q takes cos t of W away and leaves a column of length sin t."""
    W, q = np.array([[1.0], [0.0]]), np.array([[math.cos(t)], [math.sin(t)]])
    reduced = reduce(W, q)
    np.testing.assert_allclose(
        reduced[:, 0], math.sin(t) * np.array([math.sin(t), -math.cos(t)]), atol=bound((2,))
    )
    assert norm2(W - reduced) == pytest.approx(math.cos(t), abs=bound((2,)))
    assert numerical_rank(reduced) == numerical_rank(W) == 1


@law
@given(reductions())
def test_t8_the_nullity_grows_by_the_rank_removed(case: Reduction) -> None:
    """The kernel is counted by itself: vectors of the right singular basis that the weight maps to zero."""
    weight = case.weight
    k = weight.W.shape[1]

    def nullity(M: np.ndarray) -> int:
        reference = norm2(weight.W / weight.column_scale)
        s = np.linalg.svd(M / weight.column_scale, compute_uv=False)
        return k - int(np.sum(s > 1e-10 * reference))

    grown = nullity(reduce(weight.W, case.Q)) - nullity(weight.W)
    assert grown == case.inside == weight.rank - rank_after(case)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_t14_a_baked_half_precision_weight_has_full_rank_again(dtype: str, library: str) -> None:
    rng = np.random.default_rng(14)
    W = stored(rng.standard_normal((24, 40)), dtype, library)
    Q = orthonormalise(stored(rng.standard_normal((24, 6)), "float64", library)).Q
    exact = widened(reduce(W, Q))
    assert numerical_rank(exact, reference=norm2(widened(W))) == 18
    baked = stored(exact, dtype, library)
    assert numerical_rank(baked) == 24
    # what does tell: the baked weight is within the rounding of its entries of having nothing along Q
    left = norm2(widened(Q).T @ widened(baked))
    rounding = ROUNDOFF[dtype] * float(np.linalg.norm(exact)) + SMALLEST[dtype] * math.sqrt(exact.size)
    assert 0.0 < left <= rounding
    assert norm2(widened(Q).T @ widened(W)) > 10 * rounding


def test_rank_of_the_kinds_of_weights_is_what_was_built() -> None:
    """The strategies' promise, and every kind is drawn."""
    seen = set()

    @settings(law, max_examples=200)
    @given(weights())
    def check(weight: Weight) -> None:
        seen.add(weight.kind)
        assert numerical_rank(weight.W / weight.column_scale) == weight.rank
        assert weight.column_space.shape == (weight.W.shape[0], weight.rank)

    check()
    assert seen == {"wide", "square", "tall", "deficient", "zero", "duplicated", "scaled"}


def test_numerical_rank_counts_against_its_reference() -> None:
    W = np.diag([1.0, 1e-3, 1e-6, 0.0])
    assert numerical_rank(W) == 3
    assert numerical_rank(W, rtol=1e-3) == 1  # at the cut is not above it
    assert numerical_rank(W, rtol=0.9e-3) == 2
    assert numerical_rank(W, rtol=1e-7, reference=1e5) == 1
    for roundings, rank in ((15.5, 1), (16.5, 2)):
        assert numerical_rank(np.diag([1.0, roundings * 2.0**-52])) == rank
    assert numerical_rank(W.reshape(4, 2, 2, 1)) == 3
    assert numerical_rank(np.zeros((3, 0))) == 0


def test_removed_rank_counts_both_ranks_at_one_cut_of_the_spectral_norm() -> None:
    e = np.eye(2)
    W = np.diag([1.0, 1e-4])
    assert removed_rank(e[:, 1:], W) == 1
    assert removed_rank(e[:, 1:], W, rtol=1e-3) == 0  # it was not there before
    assert removed_rank(e[:, :1], W, rtol=1e-3) == 1  # and what is left does not count afterwards
    many = np.diag([1.0] * 15 + [0.02])
    assert removed_rank(np.eye(16)[:, 15:], many, rtol=0.01) == 1
    assert removed_rank(np.eye(3)[:, :1], np.zeros((3, 0))) == 0
