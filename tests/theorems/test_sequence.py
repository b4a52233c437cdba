"""T3, T3e, T3r, T3n, T3o: PaRas one after the other against PaRas together."""

from __future__ import annotations

import math
from functools import reduce as fold

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st
from strategies import (
    Matrix,
    Pair,
    bound,
    commuting,
    complement,
    families,
    generators,
    law,
    norm2,
    pair_at,
    pairs,
    projector,
    search,
)

from paramerge.algebra import (
    compare_subspaces,
    friedrichs_cosine,
    iterate_sequential,
    joint_basis,
    numerical_rank,
    principal_angles,
    reduce,
    removed_rank_joint,
    removed_rank_sequential,
    sequential_error,
    shared_dimension,
)


def sequence(bases: list[Matrix]) -> Matrix:
    """The dense ``(I-Pn)...(I-P1)``."""
    return fold(lambda product, Q: complement(Q) @ product, bases, np.eye(bases[0].shape[0]))


@law
@given(commuting(), generators())
def test_t3_sequence_and_joint_agree_when_the_projectors_commute(
    bases: list[Matrix], rng: np.random.Generator
) -> None:
    d = bases[0].shape[0]
    assert sequential_error(bases) <= bound((d, d))
    W = rng.standard_normal((d, 6))
    joint = reduce(W, joint_basis(bases).Q)
    assert norm2(iterate_sequential(bases, W) - joint) <= bound((d, 6), norm=norm2(W))
    assert removed_rank_joint(bases) == removed_rank_sequential(bases)


@law
@given(pairs())
def test_t3_they_agree_exactly_when_every_angle_is_0_or_90_degrees(pair: Pair) -> None:
    commute = pair.shared + pair.crossed == len(pair.angles)
    P1, P2 = projector(pair.Q1), projector(pair.Q2)
    error = sequential_error([pair.Q1, pair.Q2])
    if commute:
        assert norm2(P1 @ P2 - P2 @ P1) <= bound(P1.shape)
        assert error <= bound(P1.shape)
    else:
        assert error >= pair.cosine - bound(P1.shape) > 0.0


def test_t3_appendix_a_is_false() -> None:
    """Find two PaRas whose sequence is far from their joint merge; two lines in a plane are enough."""
    pair = find(
        pairs(),
        lambda pair: norm2(sequence([pair.Q1, pair.Q2]) - complement(pair.joint)) > 0.5,
        settings=search,
    )
    gap = norm2(sequence([pair.Q1, pair.Q2]) - complement(pair.joint))
    assert gap == pytest.approx(pair.cosine, abs=bound(pair.joint.shape))
    assert sequential_error([pair.Q1, pair.Q2]) == pytest.approx(gap, abs=bound(pair.joint.shape))


def test_t3_the_smallest_counterexample_in_closed_form() -> None:
    """Remove e1, then the diagonal: the paper says that nothing is left; half of a column is."""
    first, second = np.array([[1.0], [0.0]]), np.array([[1.0], [1.0]]) / math.sqrt(2)
    left = iterate_sequential([first, second], np.eye(2))
    np.testing.assert_allclose(left, [[0.0, -0.5], [0.0, 0.5]], atol=bound((2, 2)))
    assert norm2(reduce(np.eye(2), joint_basis([first, second]).Q)) <= bound((2, 2))
    assert sequential_error([first, second]) == pytest.approx(math.sqrt(0.5), abs=bound((2, 2)))


@law
@given(st.floats(0.01, math.pi / 2))
def test_t3_two_lines_in_closed_form(t: float) -> None:
    """``(I-P2)(I-P1)`` for lines at angle t has norm cos t, and the joint merge is 0."""
    first, second = np.array([[1.0], [0.0]]), np.array([[math.cos(t)], [math.sin(t)]])
    n1, n2 = np.array([[0.0], [1.0]]), np.array([[-math.sin(t)], [math.cos(t)]])
    left = iterate_sequential([first, second], np.eye(2))
    np.testing.assert_allclose(left, math.cos(t) * n2 @ n1.T, atol=bound((2, 2)))


@law
@given(pairs())
def test_t3e_the_error_is_the_cosine_of_the_friedrichs_angle(pair: Pair) -> None:
    limit = bound(pair.joint.shape)
    dense = norm2(sequence([pair.Q1, pair.Q2]) - complement(pair.joint))
    for answer in (
        dense,
        sequential_error([pair.Q1, pair.Q2]),
        sequential_error([pair.Q2, pair.Q1]),
        friedrichs_cosine(pair.Q1, pair.Q2),
        friedrichs_cosine(pair.Q2, pair.Q1),
        compare_subspaces(pair.Q1, pair.Q2).friedrichs_cosine,
    ):
        assert answer == pytest.approx(pair.cosine, abs=limit)


@law
@given(families())
def test_t3e_the_error_of_many_is_the_dense_norm(bases: list[Matrix]) -> None:
    d = bases[0].shape[0]
    joint = joint_basis(bases)
    dense = norm2(sequence(bases) - complement(joint.Q))
    assert sequential_error(bases) == pytest.approx(dense, abs=bound((d, d)))


@law
@given(pairs())
def test_t3e_principal_angles_are_accurate_however_small(pair: Pair) -> None:
    angles = principal_angles(pair.Q1, pair.Q2)
    assert angles.shape == pair.angles.shape
    np.testing.assert_allclose(angles, pair.angles, rtol=0, atol=bound(pair.joint.shape))
    np.testing.assert_allclose(
        principal_angles(pair.Q2, pair.Q1), angles, rtol=0, atol=bound(pair.joint.shape)
    )


@law
@given(pairs(), generators())
def test_t3r_removed_ranks_of_two(pair: Pair, rng: np.random.Generator) -> None:
    r1, r2 = pair.ranks
    joint, sequential = r1 + r2 - pair.shared, max(r1, r2) + pair.crossed
    both = [pair.Q1, pair.Q2]
    compared = compare_subspaces(*both)
    assert compared.ranks == (r1, r2)
    assert (compared.shared, compared.crossed) == (pair.shared, pair.crossed)
    assert shared_dimension(*both) == pair.shared
    assert removed_rank_joint(both) == compared.joint_rank == joint
    assert removed_rank_sequential(both) == compared.sequential_rank == sequential
    assert removed_rank_sequential(both[::-1]) == sequential <= joint


@law
@given(pairs(("shared", "generic", "right")), generators())
def test_t3r_is_what_a_weight_of_full_row_rank_loses(pair: Pair, rng: np.random.Generator) -> None:
    both = [pair.Q1, pair.Q2]
    d = pair.Q1.shape[0]
    W = rng.standard_normal((d, 3 * d + 3))
    joint = reduce(W, joint_basis(both).Q)
    assert d - numerical_rank(joint, reference=norm2(W), rtol=1e-10) == removed_rank_joint(both)
    left = iterate_sequential(both, W)
    assert d - numerical_rank(left, reference=norm2(W), rtol=1e-10) == removed_rank_sequential(both)


@law
@given(families())
def test_t3r_removed_ranks_of_many(bases: list[Matrix]) -> None:
    d = bases[0].shape[0]
    joint = (
        np.linalg.matrix_rank(np.concatenate(bases, axis=1), rtol=1e-9) if sum(Q.size for Q in bases) else 0
    )
    assert removed_rank_joint(bases) == joint
    s = np.linalg.svd(sequence(bases), compute_uv=False)
    assert removed_rank_sequential(bases) == d - np.sum(s > 1e-9)


@law
@given(generators(), st.integers(1, 3), st.integers(1, 3))
def test_t3r_generic_pairs_lose_only_the_larger_rank_to_the_sequence(
    rng: np.random.Generator, r1: int, r2: int
) -> None:
    bases = [np.linalg.qr(rng.standard_normal((8, r)))[0] for r in (r1, r2)]
    assert removed_rank_joint(bases) == r1 + r2
    assert removed_rank_sequential(bases) == max(r1, r2)


@law
@given(pairs(("shared", "generic", "right", "near")), st.integers(1, 6))
def test_t3n_repeating_the_sequence_converges_to_the_joint_merge(pair: Pair, n: int) -> None:
    """Kayalar and Weinert: after n rounds the distance is c^(2n - 1)."""
    d = pair.Q1.shape[0]
    distance = norm2(iterate_sequential([pair.Q1, pair.Q2], np.eye(d), n) - complement(pair.joint))
    expected = pair.cosine ** (2 * n - 1) if pair.cosine else 0.0
    assert distance == pytest.approx(expected, abs=bound((d, d), c=32.0 * n))


def test_t3n_no_round_is_the_weight() -> None:
    W = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(iterate_sequential([np.eye(2)[:, :1]], W, 0), W)


@law
@given(families(), st.randoms(use_true_random=False))
def test_t3o_the_joint_merge_does_not_depend_on_order(bases: list[Matrix], random: st.random.Random) -> None:
    joint = joint_basis(bases)
    shuffled = list(bases)
    random.shuffle(shuffled)
    other = joint_basis(shuffled)
    assert other.rank == joint.rank
    if joint.rank:
        smallest = joint.singular_values[joint.rank - 1]  # the nearer two spans, the less sharp their sum
        limit = bound((bases[0].shape[0], len(bases)), norm=4.0 / smallest)
        assert norm2(projector(joint.Q) - projector(other.Q)) <= limit
        np.testing.assert_allclose(joint.singular_values, other.singular_values, atol=bound(joint.Q.shape))


@law
@given(commuting(), st.randoms(use_true_random=False))
def test_t3o_the_sequence_does_not_either_if_the_projectors_commute(
    bases: list[Matrix], random: st.random.Random
) -> None:
    d = bases[0].shape[0]
    shuffled = list(bases)
    random.shuffle(shuffled)
    first, second = (iterate_sequential(order, np.eye(d)) for order in (bases, shuffled))
    assert norm2(first - second) <= bound((d, d))


@law
@given(generators(), st.lists(st.floats(0.05, 1.5), min_size=1, max_size=3))
def test_t3o_otherwise_the_sequence_does(rng: np.random.Generator, angles: list[float]) -> None:
    """The two orders of two PaRas differ by the commutator, of norm max sin t cos t."""
    pair = pair_at(rng, 8, angles)
    forth = iterate_sequential([pair.Q1, pair.Q2], np.eye(8))
    back = iterate_sequential([pair.Q2, pair.Q1], np.eye(8))
    expected = max(math.sin(t) * math.cos(t) for t in angles)
    assert norm2(forth - back) == pytest.approx(expected, abs=bound((8, 8)))
    assert norm2(forth - back) > 0.04
