"""Null-space projection and the signed overlap of two LoRAs, against dense products."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    LIBRARIES,
    Lora,
    bound,
    generators,
    invertible,
    law,
    lora,
    norm2,
    orthogonal,
    projector,
    stored,
)

from paramerge.algebra import lora_cosine, lora_loss, lora_survival, null_space_projection, orthonormalise

strengths = st.sampled_from([1.0, 0.5, 0.0, 1.5])
scales = st.sampled_from([1.0, 1e-8, 1e8, 0.3])


@st.composite
def two_loras(draw: st.DrawFn) -> tuple[Lora, Lora]:
    """For one weight, of ranks from 0 to 4."""
    rng, d, k = draw(generators()), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    return lora(rng, d, k, draw(st.integers(0, 4))), lora(rng, d, k, draw(st.integers(0, 4)))


@law
@given(two_loras(), strengths, scales)
def test_null_space_projection_keeps_what_does_not_touch_the_other(
    both: tuple[Lora, Lora], s: float, scale: float
) -> None:
    one, other = both
    up, down = null_space_projection(one.up, one.down, scale * other.up, s)
    Q = orthonormalise(other.up, rtol=1e-10).Q
    size = norm2(one.up)
    limit = bound(up.shape, other.up.shape, norm=1e4 * size)  # a random basis may be of any condition
    if Q.shape[1] and np.linalg.cond(other.up / np.linalg.norm(other.up, axis=0)) > 1e3:
        return
    assert norm2(up - (one.up - s * projector(Q) @ one.up)) <= limit
    np.testing.assert_array_equal(down, one.down)
    assert norm2(Q.T @ up - (1.0 - s) * Q.T @ one.up) <= limit


@law
@given(generators(), st.integers(0, 3), strengths)
def test_null_space_projection_in_closed_form(rng: np.random.Generator, shared: int, s: float) -> None:
    """Directions of the other shrink to 1 - s, those orthogonal to it stay."""
    frame = orthogonal(rng, 6)
    one, other = frame[:, :3], frame[:, 3 - shared : 6 - shared] @ invertible(rng, 3)
    up, _ = null_space_projection(one, np.eye(3), other, s)
    expected = one.copy()
    expected[:, 3 - shared :] *= 1.0 - s
    np.testing.assert_allclose(up, expected, atol=bound((6, 3), norm=10.0))


def test_null_space_projection_by_default_removes_all() -> None:
    e = np.eye(3)
    up, _ = null_space_projection(e[:, :2], np.eye(2), 5 * e[:, :1])
    np.testing.assert_array_equal(up, np.stack([0 * e[0], e[1]], axis=1))


def test_null_space_projection_decides_the_rank_at_the_precision_of_the_other() -> None:
    """A LoRA stored in half precision beside it does not blur the other's directions."""
    e = np.eye(4)
    near = np.stack([e[0], e[0] + 1e-4 * e[1]], axis=1)
    half = stored(e[:, :2], "float16")
    up, _ = null_space_projection(half, np.eye(2), near)
    assert norm2(up) <= bound((4,), norm=1e5)
    kept, _ = null_space_projection(e[:, :2], np.eye(2), near, rtol=1e-3)
    assert norm2(kept) == pytest.approx(1.0, abs=1e-3)
    blurred, _ = null_space_projection(e[:, :2], np.eye(2), near.astype(np.float16))
    assert norm2(blurred) == pytest.approx(1.0, abs=1e-3)


@law
@given(two_loras(), scales, st.sampled_from([1.0, -1.0]))
def test_the_cosine_is_that_of_the_dense_products(both: tuple[Lora, Lora], scale: float, sign: float) -> None:
    one, other = both
    P, R = one.product, other.product
    norms = float(np.linalg.norm(P) * np.linalg.norm(R))
    found = lora_cosine(scale * one.up, one.down, other.up, sign * other.down / scale)
    if norms == 0.0:
        assert found == 0.0
        return
    growth = norm2(one.up) * norm2(one.down) * norm2(other.up) * norm2(other.down) / norms
    limit = bound(P.shape, norm=4 * growth)
    assert found == pytest.approx(sign * np.sum(P * R) / norms, abs=limit)
    assert -1.0 <= found <= 1.0
    assert lora_cosine(other.up, other.down, one.up, one.down) == pytest.approx(sign * found, abs=limit)


@law
@given(generators(), st.integers(1, 4), scales)
def test_a_lora_reinforces_itself_and_cancels_its_opposite(
    rng: np.random.Generator, r: int, scale: float
) -> None:
    one = lora(rng, 6, 5, r)
    G = invertible(rng, r)
    mixed = scale * one.up @ G, np.linalg.solve(G, one.down)
    limit = bound((6, 5), norm=1e4)
    assert lora_cosine(one.up, one.down, *mixed) == pytest.approx(1.0, abs=limit)
    assert lora_cosine(one.up, one.down, -mixed[0], mixed[1]) == pytest.approx(-1.0, abs=limit)
    frame = orthogonal(rng, 6)
    across = lora_cosine(frame[:, :3], rng.standard_normal((3, 5)), frame[:, 3:], rng.standard_normal((3, 5)))
    assert across == pytest.approx(0.0, abs=bound((6, 5)))


@pytest.mark.parametrize("t", [0.0, 0.4, math.pi / 2, 2.5, math.pi])
def test_the_cosine_of_two_updates_at_an_angle(t: float) -> None:
    one, other = np.array([[1.0], [0.0]]), np.array([[math.cos(t)], [math.sin(t)]])
    down = np.array([[3.0, 4.0]])
    assert lora_cosine(one, down, 7 * other, down) == pytest.approx(math.cos(t), abs=bound((2,)))


def test_shares_and_cosines_are_never_above_1() -> None:
    """The quotient of two norms that round differently often is, by one bit."""
    rng = np.random.default_rng(11)
    for _ in range(60):
        d = int(rng.integers(2, 9))
        frame, r = orthogonal(rng, d), d // 2
        down = rng.standard_normal((2, 5))
        assert lora_loss(frame[:, :r], frame[:, :r] @ rng.standard_normal((r, 2)), down) <= 1.0
        assert lora_survival(frame[:, :r], frame[:, r:] @ rng.standard_normal((d - r, 2)), down) <= 1.0
        one = lora(rng, d, 5, 2)
        assert lora_cosine(one.up, one.down, -one.up, one.down) >= -1.0
        assert lora_cosine(one.up, one.down, one.up, one.down) <= 1.0


@pytest.mark.parametrize("library", LIBRARIES)
def test_loras_of_rank_0_and_of_zeros(library: str) -> None:
    def zeros(d: int, n: int) -> object:
        return stored(np.zeros((d, n)), "float32", library)

    one = stored(np.eye(4, 2), "float32", library), stored(np.eye(2, 3), "float32", library)
    Q = stored(np.eye(4, 1), "float32", library)
    for r in (0, 2):
        assert lora_cosine(*one, zeros(4, r), zeros(r, 3)) == 0.0
        assert lora_cosine(zeros(4, r), zeros(r, 3), *one) == 0.0
        assert lora_loss(Q, zeros(4, r), zeros(r, 3)) == 0.0
        assert lora_survival(Q, zeros(4, r), zeros(r, 3)) == 1.0
        up, down = null_space_projection(zeros(4, r), zeros(r, 3), Q)
        assert (tuple(up.shape), tuple(down.shape)) == ((4, r), (r, 3))
        kept, _ = null_space_projection(*one, zeros(4, r))
        np.testing.assert_array_equal(np.asarray(kept), np.eye(4, 2))


def test_a_cosine_does_not_overflow_in_single_precision() -> None:
    up, down = (np.full(shape, 1e15, dtype=np.float32) for shape in ((3, 1), (1, 2)))
    assert lora_cosine(up, down, up, down) == pytest.approx(1.0, abs=1e-6)
    assert lora_cosine(up, down, 1e-30 * up, -1e-30 * down) == pytest.approx(-1.0, abs=1e-6)


def test_factors_of_mixed_dtypes_are_worked_on_in_the_widest() -> None:
    torch = pytest.importorskip("torch")
    one = torch.eye(3, 2, dtype=torch.float16), torch.eye(2, 4, dtype=torch.float32)
    other = torch.eye(3, 2, dtype=torch.float64), torch.eye(2, 4, dtype=torch.bfloat16)
    assert lora_cosine(*one, *other) == pytest.approx(1.0, abs=bound((4,)))
