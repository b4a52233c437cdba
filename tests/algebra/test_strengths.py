"""The distance from sequence to joint merge at strengths below 1, against dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Matrix, bound, families, generators, law, norm2, orthogonal, pair_at, projector

from paramerge.algebra import graded_joint_basis, joint_basis, sequential_error

levels = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])


def dense_error(bases: list[Matrix], strengths: list[float]) -> float:
    d = bases[0].shape[0]
    sequence = np.eye(d)
    for Q, s in zip(bases, strengths, strict=True):
        sequence = sequence - s * projector(Q) @ sequence
    Q, weights = graded_joint_basis(bases, strengths)
    return norm2(sequence - (np.eye(d) - (Q * weights) @ Q.T))


@law
@given(families(1, 4), st.data())
def test_any_strengths_are_the_dense_norm(bases: list[Matrix], data: st.DataObject) -> None:
    strengths = data.draw(st.lists(levels, min_size=len(bases), max_size=len(bases)))
    found = sequential_error(bases, strengths)
    joint = joint_basis(bases)
    smallest = joint.singular_values[joint.rank - 1] if joint.rank else 1.0
    d = bases[0].shape[0]
    assert found == pytest.approx(dense_error(bases, strengths), abs=bound((d, d), norm=10.0 / smallest))
    assert 0.0 <= found <= 1.0 + bound((d, d))


@law
@given(families())
def test_strength_1_is_the_default(bases: list[Matrix]) -> None:
    assert sequential_error(bases, [1.0] * len(bases)) == sequential_error(bases)
    assert sequential_error(bases, [0.0] * len(bases)) == 0.0


@law
@given(generators(), st.integers(1, 4), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_shared_span_in_closed_form(rng: np.random.Generator, r: int, s: float, t: float) -> None:
    """The sequence leaves (1-s)(1-t) of it, the joint merge 1 - max(s, t)."""
    Q = orthogonal(rng, 6)[:, :r]
    expected = abs((1 - s) * (1 - t) - (1 - max(s, t)))
    assert sequential_error([Q, Q], [s, t]) == pytest.approx(expected, abs=bound((6,)))
    assert sequential_error([Q, Q], [s, s]) == pytest.approx(s * (1 - s), abs=bound((6,)))


@law
@given(generators(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_orthogonal_spans_lose_nothing_at_any_strength(rng: np.random.Generator, s: float, t: float) -> None:
    frame = orthogonal(rng, 6)
    assert sequential_error([frame[:, :2], frame[:, 2:5]], [s, t]) <= bound((6,))


@law
@given(generators(), st.floats(0.1, 1.5))
def test_order_matters_only_for_the_sequence(rng: np.random.Generator, angle: float) -> None:
    """Two lines, the second at strength s: every number by hand in the plane of the two."""
    pair = pair_at(rng, 4, [angle])
    s = 0.5
    a, b = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    sequence = (np.eye(2) - s * np.outer(b, b)) @ (np.eye(2) - np.outer(a, a))
    joint = np.diag([0.0, 1.0 - s])
    found = sequential_error([pair.Q1, pair.Q2], [1.0, s])
    assert found == pytest.approx(norm2(sequence - joint), abs=bound((4,), norm=10.0))
