"""T5, T5x, T6: a PaRa written as a LoRA, the paper's naive product, and what the wrong order loses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st
from strategies import (
    DTYPES,
    LIBRARIES,
    WORKING_EPS,
    Lora,
    Reduction,
    bound,
    generators,
    invertible,
    law,
    lora,
    norm2,
    orthogonal,
    projector,
    reductions,
    search,
    stored,
    widened,
)

from paramerge.algebra import (
    lora_loss,
    lora_survival,
    naive_combination,
    orthonormalise,
    para_then_lora,
    para_to_lora,
    reduce,
)

scales = st.sampled_from([1.0, -0.5, 0.0, 3.0, 1e-8, 1e8])
strengths = st.sampled_from([1.0, 0.5, 0.0, 1.7])


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Reduction, Lora]:
    """A weight, a basis for it and a LoRA for it."""
    case = draw(reductions())
    return case, lora(draw(generators()), *case.weight.W.shape, draw(st.integers(0, 3)))


@law
@given(reductions(), strengths)
def test_t5_a_para_is_a_lora(case: Reduction, s: float) -> None:
    W, Q = case.weight.W, case.Q
    up, down = para_to_lora(Q, W, s)
    assert up.shape == Q.shape
    assert down.shape == (Q.shape[1], W.shape[1])
    assert norm2(W + up @ down - reduce(W, Q, s)) <= bound(W.shape, norm=2 * case.weight.norm)
    np.testing.assert_array_equal(up, -s * Q)
    np.testing.assert_array_equal(para_to_lora(Q, W)[0], -Q)


@law
@given(reductions(), generators(), strengths)
def test_t5_but_only_of_this_base(case: Reduction, rng: np.random.Generator, s: float) -> None:
    """On another base it misses the reduction by exactly ``s P (W1 - W0)``."""
    W, Q = case.weight.W, case.Q
    other = W + rng.standard_normal(W.shape)
    up, down = para_to_lora(Q, W, s)
    missed = other + up @ down - reduce(other, Q, s)
    limit = bound(W.shape, norm=4 * (norm2(W) + norm2(other)))
    assert norm2(missed - s * projector(Q) @ (other - W)) <= limit


@law
@given(jobs(), scales, strengths)
def test_t5_para_then_lora_is_one_lora(job: tuple[Reduction, Lora], a: float, s: float) -> None:
    case, lora = job
    W, Q = case.weight.W, case.Q
    up, down = para_then_lora(Q, W, lora.up, lora.down, scale=a, strength=s)
    rank = Q.shape[1] + lora.up.shape[1]
    assert up.shape == (W.shape[0], rank)
    assert down.shape == (rank, W.shape[1])
    in_order = W - s * projector(Q) @ W + a * lora.product
    size = case.weight.norm + abs(a) * norm2(lora.up) * norm2(lora.down)
    assert norm2(W + up @ down - in_order) <= bound(W.shape, (rank,), norm=2 * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_t5_holds_in_every_dtype(dtype: str, library: str) -> None:
    """Against float64 on the same stored numbers: only the working precision is lost."""

    @law
    @given(reductions(("wide", "tall", "deficient")), generators())
    def check(case: Reduction, rng: np.random.Generator) -> None:
        W, Q = stored(case.weight.W, dtype, library), orthonormalise(stored(case.Q, dtype, library)).Q
        factors = lora(rng, *case.weight.W.shape, 2)
        B, A = stored(factors.up, dtype, library), stored(factors.down, dtype, library)
        up, down = (widened(factor) for factor in para_then_lora(Q, W, B, A))
        exact = widened(W) - projector(widened(Q)) @ widened(W) + widened(B) @ widened(A)
        size = norm2(widened(W)) + norm2(widened(B)) * norm2(widened(A))
        limit = bound(exact.shape, (up.shape[1],), norm=2 * size, eps=WORKING_EPS[dtype])
        assert norm2(widened(W) + up @ down - exact) <= limit

    check()


@st.composite
def naive_jobs(draw: st.DrawFn) -> tuple[Reduction, Lora]:
    """A LoRA of the same rank as the basis, at least 1."""
    case = draw(reductions(("wide", "square", "tall")).filter(lambda case: case.Q.shape[1] > 0))
    return case, lora(draw(generators()), *case.weight.W.shape, case.Q.shape[1])


@law
@given(naive_jobs(), st.floats(-2.0, 2.0), st.floats(-2.0, 2.0))
def test_t5x_the_naive_form_has_the_cross_terms(job: tuple[Reduction, Lora], a1: float, a2: float) -> None:
    """``a1 a2 (B Q^T W0 - Q A)``, on top of ``-a1^2 Q Q^T W0 + a2^2 B A``."""
    case, lora = job
    W, Q = case.weight.W, case.Q
    up, down = naive_combination(Q, W, lora.up, lora.down, alpha_para=a1, alpha_lora=a2)
    assert up.shape == lora.up.shape
    assert down.shape == lora.down.shape
    cross = lora.up @ (Q.T @ W) - Q @ lora.down
    expected = -(a1**2) * projector(Q) @ W + a2**2 * lora.product + a1 * a2 * cross
    size = (2 + 2 * norm2(lora.up)) * (2 * case.weight.norm + 2 * norm2(lora.down))
    assert norm2(up @ down - expected) <= bound(W.shape, norm=size)


def test_t5x_the_naive_form_is_neither_adapter() -> None:
    """Find a case where the cross terms alone are larger than both adapters together."""

    def swamped(job: tuple[Reduction, Lora]) -> bool:
        case, lora = job
        wanted = lora.product - projector(case.Q) @ case.weight.W
        up, down = naive_combination(
            case.Q, case.weight.W, lora.up, lora.down, alpha_para=1.0, alpha_lora=1.0
        )
        return norm2(up @ down - wanted) > norm2(projector(case.Q) @ case.weight.W) + norm2(lora.product)

    case, _ = find(naive_jobs(), swamped, settings=search)
    assert case.Q.shape[1] >= 1


@law
@given(jobs(), scales, strengths)
def test_t6_the_order_costs_minus_s_p_b_a(job: tuple[Reduction, Lora], a: float, s: float) -> None:
    case, lora = job
    W, Q, update = case.weight.W, case.Q, a * lora.product
    para_last, para_first = reduce(W + update, Q, s), reduce(W, Q, s) + update
    limit = bound(W.shape, norm=4 * (case.weight.norm + norm2(update)))
    assert norm2(para_last - para_first + s * projector(Q) @ update) <= limit


@law
@given(jobs(), scales.filter(bool))
def test_t6_the_share_lost_and_the_share_left(job: tuple[Reduction, Lora], a: float) -> None:
    """Both against the dense product; neither depends on the scale of the LoRA."""
    case, factors = job
    product, P = factors.product, projector(case.Q)
    total = float(np.linalg.norm(product))
    limit = bound(product.shape, norm=4.0)
    lost = lora_loss(case.Q, a * factors.up, factors.down)
    left = lora_survival(case.Q, a * factors.up, factors.down)
    if total == 0.0:
        assert (lost, left) == (0.0, 1.0)
        return
    assert lost == pytest.approx(np.linalg.norm(P @ product) / total, abs=limit)
    assert left == pytest.approx(np.linalg.norm(product - P @ product) / total, abs=limit)
    assert lost**2 + left**2 == pytest.approx(1.0, abs=2 * limit)
    assert 0.0 <= lost <= 1.0
    assert 0.0 <= left <= 1.0


@law
@given(generators(), st.integers(1, 6), st.integers(1, 3), scales.filter(bool))
def test_t6_a_lora_inside_the_span_is_lost_for_every_alpha(
    rng: np.random.Generator, d: int, n: int, a: float
) -> None:
    frame = orthogonal(rng, d)
    r = int(rng.integers(1, d + 1))
    inside = Lora(frame[:, :r] @ rng.standard_normal((r, n)), rng.standard_normal((n, 5)))
    Q = frame[:, :r] @ orthogonal(rng, r)
    assert lora_loss(Q, a * inside.up, inside.down) == pytest.approx(1.0, abs=bound((d, 5)))
    assert lora_survival(Q, a * inside.up, inside.down) <= bound((d, 5))
    update = a * inside.product
    assert norm2(reduce(update, Q)) <= bound((d, 5), norm=norm2(update) + abs(a) * norm2(inside.up))
    if r < d:
        spared = frame[:, r:] @ rng.standard_normal((d - r, n))
        assert lora_loss(Q, a * spared, inside.down) <= bound((d, 5), norm=4.0)
        assert lora_survival(Q, a * spared, inside.down) == pytest.approx(1.0, abs=bound((d, 5)))


@law
@given(generators(), st.floats(0.0, math.pi / 2))
def test_t6_a_lora_at_an_angle_in_closed_form(rng: np.random.Generator, t: float) -> None:
    """One direction at angle t to the basis: cos t is lost and sin t is left, also for tiny angles."""
    frame = orthogonal(rng, 5)
    up = (math.cos(t) * frame[:, 0] + math.sin(t) * frame[:, 1])[:, None]
    down = rng.standard_normal((1, 4))
    assert lora_loss(frame[:, :1], up, down) == pytest.approx(math.cos(t), abs=bound((5,)))
    assert lora_survival(frame[:, :1], up, down) == pytest.approx(math.sin(t), abs=bound((5,)))


@law
@given(jobs(), generators())
def test_t6_does_not_depend_on_the_factors_chosen(
    job: tuple[Reduction, Lora], rng: np.random.Generator
) -> None:
    """``B G`` and ``G^-1 A`` are the same LoRA."""
    case, factors = job
    G = invertible(rng, factors.up.shape[1])
    mixed = factors.up @ G, np.linalg.solve(G, factors.down)
    assert lora_loss(case.Q, *mixed) == pytest.approx(
        lora_loss(case.Q, factors.up, factors.down), abs=bound(case.weight.W.shape, norm=1e4)
    )
