"""T13, and the laws of angles, ranks and order on adapters that were stored in every dtype."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    DTYPES,
    LIBRARIES,
    ROUNDOFF,
    SMALLEST,
    WORKING_EPS,
    Matrix,
    Reduction,
    bound,
    columns,
    complement,
    generators,
    law,
    lora,
    norm2,
    orthogonal,
    pair_at,
    projector,
    reductions,
    stored,
    widened,
)

from paramerge.algebra import (
    compare_subspaces,
    friedrichs_cosine,
    iterate_sequential,
    joint_basis,
    lora_loss,
    orthonormalise,
    project,
    reduce,
    removed_rank,
    removed_rank_joint,
    removed_rank_sequential,
    require_orthonormal,
    sequential_error,
    storage_tolerance,
)
from paramerge.errors import UsageError

HALF = ("float16", "bfloat16")


def storage_error(Q: Matrix, dtype: str) -> float:
    """How far rounding moves a basis, in the Frobenius norm: half a unit of each entry."""
    return ROUNDOFF[dtype] * float(np.linalg.norm(Q)) + SMALLEST[dtype] * math.sqrt(Q.size)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("library", LIBRARIES)
def test_t13_a_stored_basis_is_not_orthonormal_and_is_made_so_again(dtype: str, library: str) -> None:
    @law
    @given(generators(), st.integers(8, 32), st.integers(1, 6))
    def check(rng: np.random.Generator, d: int, r: int) -> None:
        Q = orthogonal(rng, d)[:, :r]
        kept = stored(Q, dtype, library)
        moved = storage_error(Q, dtype)
        off = norm2(widened(kept).T @ widened(kept) - np.eye(r))
        assert off <= 2 * moved + moved**2
        again = orthonormalise(kept)
        assert again.rank == r
        require_orthonormal(again.Q)
        assert norm2(widened(again.Q).T @ widened(again.Q) - np.eye(r)) <= bound((d, r), eps=2.0**-23)
        # the span moved by no more than the columns did (Wedin), whose smallest singular value is 1 - moved
        assert norm2(projector(widened(again.Q)) - projector(Q)) <= moved / (1 - moved) + bound(
            (d,), eps=2.0**-23
        )

    check()


@pytest.mark.parametrize(("dtype", "least"), [("float16", 1e-4), ("bfloat16", 1e-3)])
@pytest.mark.parametrize("library", LIBRARIES)
def test_t13_a_stored_basis_is_no_projector(dtype: str, least: float, library: str) -> None:
    """About 1e-3 off: applying it twice is not once; so it is refused wherever a projector is needed."""
    rng = np.random.default_rng(13)
    Q = orthogonal(rng, 64)[:, :16]
    kept = stored(Q, dtype, library)
    P = projector(widened(kept))
    assert norm2(P @ P - P) > least
    with pytest.raises(UsageError, match="not orthonormal"):
        require_orthonormal(kept)
    W = stored(rng.standard_normal((64, 8)), dtype, library)
    for use in (lambda: reduce(W, kept), lambda: project(kept, W), lambda: removed_rank(kept, W)):
        with pytest.raises(UsageError, match="not orthonormal"):
            use()
    once = reduce(W, orthonormalise(kept).Q)
    twice = reduce(once, orthonormalise(kept).Q)
    assert norm2(widened(twice) - widened(once)) <= bound((64, 8), norm=norm2(widened(W)), eps=2.0**-23)


@pytest.mark.parametrize("dtype", DTYPES)
def test_storage_tolerance_bounds_the_singular_values_of_unit_columns(dtype: str) -> None:
    @law
    @given(generators(), st.integers(2, 12), st.integers(1, 8))
    def check(rng: np.random.Generator, d: int, n: int) -> None:
        unit = rng.standard_normal((d, n))
        unit /= np.linalg.norm(unit, axis=0)
        rounded = widened(stored(unit, dtype))
        moved = np.linalg.svd(rounded, compute_uv=False) - np.linalg.svd(unit, compute_uv=False)
        slack = bound((d, n)) + SMALLEST[dtype] * math.sqrt(unit.size)
        assert np.abs(moved).max() <= storage_tolerance(dtype, n) + slack

    check()
    assert storage_tolerance(dtype, 4) == 2 * ROUNDOFF[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_t3e_t3r_t3n_hold_for_stored_adapters(dtype: str, library: str) -> None:
    """Against what was built: off by what storage moved the bases, and by the working precision."""

    @law
    @given(
        generators(),
        st.lists(st.floats(0.3, 1.3), min_size=1, max_size=3),
        st.integers(0, 1),
        st.integers(1, 3),
    )
    def check(rng: np.random.Generator, angles: list[float], shared: int, rounds: int) -> None:
        pair = pair_at(rng, 9, [0.0] * shared + angles, (1, 0))
        bases = [stored(Q, dtype, library) for Q in (pair.Q1, pair.Q2)]
        moved = sum(storage_error(Q, dtype) for Q in (pair.Q1, pair.Q2))
        gap = math.sin(min(angles) / 2)  # of the joint span: how well its directions are told apart
        limit = 4 * moved / gap + bound((9, 9), eps=WORKING_EPS[dtype])
        compared = compare_subspaces(*bases)
        assert (compared.shared, compared.crossed) == (shared, 0)
        assert removed_rank_joint(bases) == compared.joint_rank == sum(pair.ranks) - shared
        assert removed_rank_sequential(bases) == max(pair.ranks)
        assert np.abs(widened(compared.angles) - pair.angles).max() <= limit
        assert friedrichs_cosine(*bases) == pytest.approx(pair.cosine, abs=limit)
        assert sequential_error(bases) == pytest.approx(pair.cosine, abs=limit)
        joint = joint_basis(bases)
        assert norm2(projector(widened(joint.Q)) - projector(pair.joint)) <= limit
        left = widened(iterate_sequential(bases, stored(np.eye(9), dtype, library), rounds))
        expected = pair.cosine ** (2 * rounds - 1)
        assert norm2(left - complement(pair.joint)) == pytest.approx(expected, abs=rounds * limit)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_t1b_full_row_rank_loses_r_in_every_dtype(dtype: str, library: str) -> None:
    """Rounding a weight of condition 10 leaves its row rank full, so the law is exact."""

    @law
    @given(reductions(("wide", "square")))
    def check(case: Reduction) -> None:
        W = stored(case.weight.W, dtype, library)
        Q = orthonormalise(stored(case.Q, dtype, library)).Q
        assert removed_rank(Q, W) == case.Q.shape[1]

    check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_t6_t7_hold_for_stored_adapters(dtype: str, library: str) -> None:
    """Against float64 on the same stored numbers: the span of B, and what it takes of a LoRA."""

    @law
    @given(columns(), generators())
    def check(B: Matrix, rng: np.random.Generator) -> None:
        d, r = B.shape
        kept = stored(B, dtype, library)
        if r and np.linalg.cond(widened(kept)) > 30.0:  # rounding may make a few columns nearly dependent
            return
        limit = bound((d, r), norm=100.0, eps=WORKING_EPS[dtype])
        exact = projector(np.linalg.qr(widened(kept))[0])
        for scale in (1.0, 4.0, -64.0):  # exact in every dtype
            basis = orthonormalise(stored(scale * widened(kept), dtype, library))
            assert basis.rank == r
            assert norm2(projector(widened(basis.Q)) - exact) <= limit
        factors = lora(rng, d, 4, 2)
        up, down = stored(factors.up, dtype, library), stored(factors.down, dtype, library)
        product = widened(up) @ widened(down)
        share = np.linalg.norm(exact @ product) / np.linalg.norm(product)
        assert lora_loss(basis.Q, up, down) == pytest.approx(share, abs=limit)

    check()


@pytest.mark.parametrize("library", LIBRARIES)
def test_t1_holds_in_float32(library: str) -> None:
    @law
    @given(reductions(("wide", "square", "tall", "deficient", "zero", "duplicated")))
    def check(case: Reduction) -> None:
        W, Q = (stored(M, "float32", library) for M in (case.weight.W, case.Q))
        assert removed_rank(Q, W, rtol=1e-5) == case.inside

    check()


def test_a_weight_of_another_dtype_does_not_blur_the_bases() -> None:
    """Ranks are decided at the precision of the bases, not at that of the weight beside them."""
    rng = np.random.default_rng(1)
    Q1 = orthogonal(rng, 12)
    near = np.stack([Q1[:, 0], Q1[:, 0] + 1e-4 * Q1[:, 1]], axis=1)
    W = rng.standard_normal((12, 3))
    exact = iterate_sequential([near], W)
    assert norm2(Q1[:, :2].T @ exact) <= bound((12,), norm=1e6)
    half = widened(iterate_sequential([near], stored(W, "float16")))
    assert norm2(Q1[:, :2].T @ half) <= bound((12,), norm=1e6)
    # two columns that only their rounding to half precision tells apart are one direction, in float64 too
    twin = np.stack([Q1[:, 0], Q1[:, 0] + 3e-4 * Q1[:, 1]], axis=1).astype(np.float16)
    one = iterate_sequential([twin], Q1)
    assert np.linalg.matrix_rank(one, tol=1e-2) == 11
