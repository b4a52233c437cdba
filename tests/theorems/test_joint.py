"""T4 and the joint merge: ranks that are there, bases that nobody invented, strengths that differ."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st
from strategies import (
    ANGLES,
    Matrix,
    Pair,
    bound,
    commuting,
    complement,
    families,
    generators,
    invertible,
    law,
    norm2,
    pair_at,
    pairs,
    projector,
    search,
)

from paramerge.algebra import (
    graded_joint_basis,
    joint_basis,
    orthonormalise,
    reduce,
    storage_tolerance,
)


def plain_qr(bases: list[Matrix]) -> Matrix:
    """The paper's recipe: the Q of ``[Q1 Q2] = Q R``."""
    return np.linalg.qr(np.concatenate(bases, axis=1))[0]


@law
@given(pairs())
def test_t4_the_joint_rank_is_that_of_the_sum(pair: Pair) -> None:
    """Equal, nested, shared and nearly equal spans; the joint span holds both and nothing more."""
    joint = joint_basis([pair.Q1, pair.Q2])
    d = pair.Q1.shape[0]
    assert joint.rank == joint.Q.shape[1] == pair.joint.shape[1]
    assert norm2(joint.Q.T @ joint.Q - np.eye(joint.rank)) <= bound((d, d))
    for Q in (pair.Q1, pair.Q2):
        assert norm2(complement(joint.Q) @ Q) <= bound((d, d))
    if joint.rank:  # a direction known from a difference of size s is known to eps / s
        smallest = joint.singular_values[joint.rank - 1]
        assert norm2(projector(joint.Q) - projector(pair.joint)) <= bound((d, d), norm=1.0 / smallest)


@law
@given(pairs(("shared", "near", "generic", "right")))
def test_t4_singular_values_tell_shared_from_single(pair: Pair) -> None:
    """``[Q1 Q2]`` has ``sqrt(1 +- cos t)`` for every principal angle t, and 1 for what is left over."""
    t = pair.angles
    squares = np.concatenate([2 * np.cos(t / 2) ** 2, 2 * np.sin(t / 2) ** 2])
    expected = np.concatenate([np.sqrt(squares), np.ones(abs(pair.ranks[0] - pair.ranks[1]))])
    expected = np.sort(expected)[::-1]
    found = joint_basis([pair.Q1, pair.Q2]).singular_values
    np.testing.assert_allclose(found, expected[: len(found)], atol=bound(pair.joint.shape))
    np.testing.assert_allclose(expected[len(found) :], 0.0, atol=bound(pair.joint.shape))


@law
@given(families(1, 1), generators(), st.integers(2, 4))
def test_t4_merging_a_with_a_gives_a(single: list[Matrix], rng: np.random.Generator, times: int) -> None:
    """Also when A comes in another basis each time."""
    Q = single[0]
    d, r = Q.shape
    joint = joint_basis([Q] * times)
    assert joint.rank == r
    assert norm2(projector(joint.Q) - projector(Q)) <= bound((d, d))
    mixed = joint_basis([Q @ invertible(rng, r) for _ in range(times)])
    assert mixed.rank == r
    assert norm2(projector(mixed.Q) - projector(Q)) <= bound((d, d), norm=10.0)
    np.testing.assert_allclose(joint.singular_values[:r], math.sqrt(times), atol=bound((d, d)))


def test_t4_plain_qr_invents_directions() -> None:
    """Find spans whose QR deletes a direction that is orthogonal to both adapters."""

    def invents(pair: Pair) -> bool:
        return norm2(complement(pair.joint) @ plain_qr([pair.Q1, pair.Q2])) > 0.5

    pair = find(pairs(("shared", "generic")), invents, settings=search)
    Q = plain_qr([pair.Q1, pair.Q2])
    assert Q.shape[1] > pair.joint.shape[1]
    assert joint_basis([pair.Q1, pair.Q2]).rank == pair.joint.shape[1]


def test_t4_counterexample_in_closed_form() -> None:
    """Merge e1 with itself in the plane: QR returns the whole plane and deletes W; the merge leaves a row."""
    e1 = np.array([[1.0], [0.0]])
    W = np.array([[1.0, 2.0], [3.0, 4.0]])
    Q = plain_qr([e1, e1])
    np.testing.assert_allclose(Q @ Q.T, np.eye(2), atol=bound((2, 2)))
    np.testing.assert_allclose(W - Q @ (Q.T @ W), np.zeros((2, 2)), atol=bound((2, 2), norm=norm2(W)))
    left = reduce(W, joint_basis([e1, e1]).Q)
    np.testing.assert_allclose(left, [[0.0, 0.0], [3.0, 4.0]], atol=bound((2, 2), norm=norm2(W)))


@law
@given(generators(), ANGLES["near"])
def test_t4_the_cut_decides_from_which_angle_two_spans_are_one(rng: np.random.Generator, t: float) -> None:
    """Spans at angle t have the relative singular value tan(t / 2): merged at a cut above, kept below."""
    pair = pair_at(rng, 6, [t])
    cut = math.tan(t / 2)
    assert joint_basis([pair.Q1, pair.Q2], rtol=1.1 * cut).rank == 1
    assert joint_basis([pair.Q1, pair.Q2], rtol=0.9 * cut).rank == 2
    merged = joint_basis([pair.Q1, pair.Q2], rtol=1.1 * cut).Q
    assert norm2(projector(merged) - projector(pair.Q1)) <= 1.1 * t  # stable: nothing far from both


@law
@given(families(), st.data())
def test_joint_basis_of_equal_strengths_is_graded_by_one(bases: list[Matrix], data: st.DataObject) -> None:
    s = data.draw(st.sampled_from([1.0, 0.5, 0.001]))
    Q, weights = graded_joint_basis(bases, [s] * len(bases))
    joint = joint_basis(bases)
    assert Q.shape == joint.Q.shape
    np.testing.assert_array_equal(weights, np.full(joint.rank, s))
    np.testing.assert_allclose(projector(Q), projector(joint.Q), atol=bound(Q.shape))


def layered(bases: list[Matrix], strengths: list[float]) -> Matrix:
    """The definition, dense: the sum of ``(s_k - s_{k+1}) P_V(s_k)`` over the strengths descending."""
    d = bases[0].shape[0]
    levels = [*sorted(set(strengths), reverse=True), 0.0]
    total = np.zeros((d, d))
    for level, below in itertools.pairwise(levels):
        stronger = np.concatenate([Q for Q, s in zip(bases, strengths, strict=True) if s >= level], axis=1)
        U, singular_values, _ = np.linalg.svd(stronger, full_matrices=False)
        total += (level - below) * projector(U[:, singular_values > 1e-9])
    return total


levels = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])


@law
@given(families(), st.data())
def test_graded_merge_is_its_definition_in_any_order(bases: list[Matrix], data: st.DataObject) -> None:
    strengths = data.draw(st.lists(levels, min_size=len(bases), max_size=len(bases)))
    order = data.draw(st.permutations(range(len(bases))))
    Q, weights = graded_joint_basis([bases[i] for i in order], [strengths[i] for i in order])
    d = Q.shape[0]
    assert norm2(Q.T @ Q - np.eye(Q.shape[1])) <= bound((d, d))
    assert list(weights) == sorted(weights, reverse=True)
    gap = joint_basis(bases).singular_values
    smallest = min((s for s in gap if s > 1e-9), default=1.0)
    assert norm2((Q * weights) @ Q.T - layered(bases, strengths)) <= bound((d, d), norm=10.0 / smallest**2)
    taking_part = [basis for basis, s in zip(bases, strengths, strict=True) if s > 0]
    assert Q.shape[1] == (joint_basis(taking_part).rank if taking_part else 0)


@law
@given(commuting(), st.data())
def test_graded_merge_of_orthogonal_spans_is_their_product(bases: list[Matrix], data: st.DataObject) -> None:
    frame = bases[0]
    parts = [frame[:, i : i + 1] for i in range(frame.shape[1])]
    if not parts:
        return
    strengths = data.draw(st.lists(levels, min_size=len(parts), max_size=len(parts)))
    Q, weights = graded_joint_basis(parts, strengths)
    d = frame.shape[0]
    product = np.eye(d)
    for part, s in zip(parts, strengths, strict=True):
        product = reduce(product, part, s)
    np.testing.assert_allclose(np.eye(d) - (Q * weights) @ Q.T, product, atol=bound((d, d)))


@law
@given(generators(), st.integers(1, 4))
def test_graded_merge_gives_a_shared_direction_to_the_stronger(rng: np.random.Generator, r: int) -> None:
    Q = np.linalg.qr(rng.standard_normal((6, r)))[0]
    merged, weights = graded_joint_basis([Q, Q], [0.25, 0.75])
    assert merged.shape == (6, r)
    np.testing.assert_array_equal(weights, np.full(r, 0.75))


@law
@given(generators(), ANGLES["near"])
def test_graded_merge_stays_orthonormal_for_nearly_equal_spans(rng: np.random.Generator, t: float) -> None:
    pair = pair_at(rng, 7, [t, 0.7])
    Q, weights = graded_joint_basis([pair.Q1, pair.Q2], [1.0, 0.5])
    assert list(weights) == [1.0, 1.0, 0.5, 0.5]
    assert norm2(Q.T @ Q - np.eye(4)) <= bound((7, 7))
    assert norm2(complement(Q) @ pair.Q2) <= bound((7, 7))
    cut = 0.5 * t
    assert graded_joint_basis([pair.Q1, pair.Q2], [1.0, 0.5], rtol=1.1 * cut)[0].shape[1] == 3
    assert graded_joint_basis([pair.Q1, pair.Q2], [1.0, 0.5], rtol=0.9 * cut)[0].shape[1] == 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_t4_spans_that_differ_by_the_rounding_of_storage_are_one(dtype: str, library: str) -> None:
    """The same span in two bases, stored: only rounding tells them apart, and the default cut knows."""
    from strategies import stored, widened

    rng = np.random.default_rng(4)
    Q = np.linalg.qr(rng.standard_normal((64, 6)))[0]
    first = stored(Q, dtype, library)
    second = stored(np.linalg.qr(Q @ rng.standard_normal((6, 6)))[0], dtype, library)
    assert joint_basis([first, second]).rank == 6
    wide = [stored(widened(Q), "float64", library) for Q in (first, second)]
    assert joint_basis(wide).rank == 12
    assert joint_basis(wide, rtol=storage_tolerance(dtype, 12)).rank == 6
    assert joint_basis([first, second, orthonormalise(first).Q]).rank == 6
