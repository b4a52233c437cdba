"""T11, T12: the rank boundary, and which directions stay within it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    Matrix,
    bound,
    complement,
    families,
    generators,
    invertible,
    law,
    norm2,
    orthogonal,
    pair_at,
    projector,
)

from paramerge.algebra import adjusted_rank, joint_basis, numerical_rank, rank_boundary, reduce


@st.composite
def fractions(draw: st.DrawFn) -> Fraction:
    """From 0 to 1, of denominators up to 1000."""
    denominator = draw(st.integers(1, 1000))
    return Fraction(draw(st.integers(0, denominator)), denominator)


@law
@given(st.integers(0, 400), fractions(), st.integers(0, 4000))
@example(400, Fraction(29, 100), 100)  # 0.29 * 100 is 28.999999999999996
@example(400, Fraction(1, 3), 3)
@example(400, Fraction(1, 40), 320)
@example(400, Fraction(0), 320)
@example(400, Fraction(1), 320)
def test_t11_the_rank_is_the_smaller_of_r_and_the_floor(r: int, gamma: Fraction, rank: int) -> None:
    """In exact arithmetic, and with the float nearest to gamma just the same."""
    expected = min(r, (gamma.numerator * rank) // gamma.denominator)
    assert adjusted_rank(r, gamma, rank) == expected
    assert adjusted_rank(r, float(gamma), rank) == expected


def test_t11_floats_need_the_care() -> None:
    """The plain floor is off by one for a good part of the hundredths."""
    wrong = [n for n in range(1, 100) if math.floor(n / 100 * 100) != n]
    assert wrong
    assert all(adjusted_rank(1000, n / 100, 100) == n for n in range(1, 100))
    assert adjusted_rank(1000, math.nextafter(0.29, 0.0) - 1e-15, 100) == 28
    assert adjusted_rank(1000, Fraction(28, 100) + Fraction(99, 10_000), 100) == 28
    assert adjusted_rank(1000, Fraction(29, 100) - Fraction(1, 10**20), 100) == 28  # exact, and so below


@law
@given(generators(), st.integers(1, 6), st.integers(7, 12))
def test_t11_may_be_0_and_then_the_layer_is_left_alone(rng: np.random.Generator, r: int, d: int) -> None:
    W, Q = rng.standard_normal((d, 2 * d)), orthogonal(rng, d)[:, :r]
    bounded = rank_boundary(Q, 0.05, W)
    assert (bounded.rank, bounded.limit, bounded.columns, bounded.dropped) == (0, 0, r, r)
    assert bounded.Q.shape == (d, 0)
    np.testing.assert_array_equal(reduce(W, bounded.Q), W)


def kept_count(columns: int, gamma: float, rank: int) -> int:
    return min(columns, math.floor(Fraction(gamma).limit_denominator(1000) * rank))


gammas = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])


@st.composite
def boundary_jobs(draw: st.DrawFn) -> tuple[Matrix, list[Matrix], float]:
    """A weight (wide or tall), bases for it, and a boundary."""
    bases = draw(families(1, 4))
    rng = draw(generators())
    d = bases[0].shape[0]
    k = draw(st.sampled_from([d // 2, d, 2 * d]))
    return rng.standard_normal((d, k)), bases, draw(gammas)


@law
@given(boundary_jobs())
def test_t12_energy_keeps_the_directions_that_remove_most(job: tuple[Matrix, list[Matrix], float]) -> None:
    """As much as the leading singular values of ``Q^T W``: no other choice in the span removes more."""
    W, bases, gamma = job
    joint = joint_basis(bases)
    bounded = rank_boundary(bases, gamma, W)
    m = kept_count(joint.rank, gamma, min(W.shape))
    assert bounded.rank == bounded.Q.shape[1] == m
    assert bounded.limit == math.floor(Fraction(gamma) * min(W.shape))
    assert bounded.columns == joint.rank
    limit = bound(W.shape, norm=4.0)
    assert norm2(bounded.Q.T @ bounded.Q - np.eye(m)) <= limit
    assert norm2(complement(joint.Q) @ bounded.Q) <= limit
    singular_values = np.linalg.svd(joint.Q.T @ W, compute_uv=False)
    removed = float(np.linalg.norm(bounded.Q.T @ W))
    assert removed == pytest.approx(np.linalg.norm(singular_values[:m]), abs=limit * norm2(W))
    if 0 < m < joint.rank:  # strongest first
        energies = np.linalg.norm(bounded.Q.T @ W, axis=1)
        np.testing.assert_allclose(energies, singular_values[:m], atol=limit * norm2(W))


@law
@given(boundary_jobs(), generators())
def test_t12_no_other_choice_removes_more(
    job: tuple[Matrix, list[Matrix], float], rng: np.random.Generator
) -> None:
    W, bases, gamma = job
    best = np.linalg.norm(rank_boundary(bases, gamma, W).Q.T @ W)
    slack = bound(W.shape, norm=4 * norm2(W))
    for keep in ("consensus", "order"):
        kept = rank_boundary(bases, gamma, W, keep=keep).Q  # type: ignore[arg-type]
        assert np.linalg.norm(kept.T @ W) <= best + slack
    joint = joint_basis(bases)
    m = rank_boundary(bases, gamma, W).rank
    some = (joint.Q @ orthogonal(rng, joint.rank))[:, :m]
    assert np.linalg.norm(some.T @ W) <= best + slack


@law
@given(boundary_jobs())
def test_t12_consensus_keeps_what_most_adapters_share(job: tuple[Matrix, list[Matrix], float]) -> None:
    """Judged by ``sum_i ||Q_i^T q||^2``, the number of adapters that a direction belongs to."""
    W, bases, gamma = job
    joint = joint_basis(bases)
    bounded = rank_boundary(bases, gamma, W, keep="consensus")
    m = kept_count(joint.rank, gamma, min(W.shape))
    assert (bounded.rank, bounded.columns) == (m, joint.rank)
    votes = sum(np.linalg.norm(Q.T @ bounded.Q, axis=0) ** 2 for Q in bases)
    np.testing.assert_allclose(votes, joint.singular_values[:m] ** 2, atol=bound(W.shape, norm=8.0))
    assert norm2(bounded.Q.T @ bounded.Q - np.eye(m)) <= bound(W.shape)


def test_t12_consensus_prefers_the_shared_direction_and_energy_the_strong_one() -> None:
    e = np.eye(4)
    bases = [e[:, [0, 1]], e[:, [1, 2]]]
    W = np.diag([5.0, 1.0, 2.0, 3.0])
    kept = {
        keep: rank_boundary(bases, 0.25, W, keep=keep).Q[:, 0] ** 2  # type: ignore[arg-type]
        for keep in ("energy", "consensus", "order")
    }
    np.testing.assert_allclose(kept["consensus"], e[1], atol=bound((4,)))
    np.testing.assert_allclose(kept["energy"], e[0], atol=bound((4,)))
    np.testing.assert_allclose(kept["order"], e[0], atol=bound((4,)))
    swapped = rank_boundary([np.eye(4)[:, [2, 1]], bases[0]], 0.25, W, keep="order")
    np.testing.assert_allclose(swapped.Q[:, 0] ** 2, e[2], atol=bound((4,)))


@law
@given(boundary_jobs(), generators())
def test_t12_order_keeps_the_first_adapter_first(
    job: tuple[Matrix, list[Matrix], float], rng: np.random.Generator
) -> None:
    W, bases, gamma = job
    bounded = rank_boundary(bases, gamma, W, keep="order")
    joint = joint_basis(bases)
    m = kept_count(joint.rank, gamma, min(W.shape))
    assert (bounded.rank, bounded.columns) == (m, joint.rank)
    first = bases[0].shape[1]
    if m <= first:
        assert norm2(complement(bases[0]) @ bounded.Q) <= bound(W.shape)
        np.testing.assert_allclose(bounded.Q, bases[0][:, :m] * np.sign(np.sum(
            bounded.Q * bases[0][:, :m], axis=0)), atol=bound(W.shape, norm=4.0))  # fmt: skip
    else:
        assert norm2(complement(bounded.Q) @ bases[0]) <= bound(W.shape, norm=4.0)
    alone = bases[0] @ invertible(rng, first)
    again = rank_boundary([alone], gamma, W, keep="order")
    assert again.columns == first


@law
@given(generators(), gammas)
def test_t12_a_single_basis_by_order_is_cut(rng: np.random.Generator, gamma: float) -> None:
    W, Q = rng.standard_normal((8, 12)), orthogonal(rng, 8)[:, :5]
    m = kept_count(5, gamma, 8)
    np.testing.assert_array_equal(rank_boundary(Q, gamma, W, keep="order").Q, Q[:, :m])
    by_energy = rank_boundary(Q, gamma, W)
    assert by_energy.rank == m
    strongest = np.linalg.svd(Q.T @ W)[1][:m]
    assert np.linalg.norm(by_energy.Q.T @ W) == pytest.approx(
        np.linalg.norm(strongest), abs=bound(W.shape, norm=4 * norm2(W))
    )
    np.testing.assert_array_equal(rank_boundary(Q, 1.0, W).Q, Q)  # within the boundary nothing is rotated


@law
@given(generators(), st.integers(0, 4))
def test_t12_the_boundary_is_of_the_rank_and_not_the_size(rng: np.random.Generator, rank: int) -> None:
    W = rng.standard_normal((8, rank)) @ rng.standard_normal((rank, 9))
    Q = orthogonal(rng, 8)[:, :6]
    assert numerical_rank(W) == rank
    assert rank_boundary(Q, 1.0, W).limit == rank
    assert rank_boundary(Q, 0.5, W).rank == rank // 2
    assert rank_boundary(Q, 0.5, keep="order", rank_W=8).rank == 4
    assert rank_boundary(Q, 0.5, W, rank_W=8).rank == 4  # a rank that is given is believed


@pytest.mark.parametrize("keep", ["energy", "consensus", "order"])
def test_t12_the_cut_decides_which_directions_there_are(keep: str) -> None:
    rng = np.random.default_rng(6)
    pair = pair_at(rng, 8, [1e-4, 0.9])
    W = rng.standard_normal((8, 9))
    for rtol, columns in ((None, 4), (1e-3, 3)):
        bounded = rank_boundary([pair.Q1, pair.Q2], 1.0, W, keep=keep, rtol=rtol)  # type: ignore[arg-type]
        assert (bounded.columns, bounded.rank) == (columns, columns)


def test_t12_a_convolution_is_flattened() -> None:
    rng = np.random.default_rng(12)
    W = rng.standard_normal((6, 2, 3, 3))
    Q = orthogonal(rng, 6)[:, :4]
    flat = rank_boundary(Q, 0.5, W.reshape(6, -1))
    conv = rank_boundary(Q, 0.5, W)
    assert conv.rank == flat.rank == 3
    np.testing.assert_allclose(projector(conv.Q), projector(flat.Q), atol=bound((6, 18)))
    narrow = rng.standard_normal((6, 2, 1, 1))
    assert rank_boundary(Q, 1.0, narrow).rank == 2
