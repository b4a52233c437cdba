"""T2, T2s, T7, T10: what the projector does whoever chose the basis, and how often it is applied."""

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
    invertible,
    law,
    norm2,
    projector,
    reductions,
    stored,
    widened,
)

from paramerge.algebra import (
    flatten_conv,
    numerical_rank,
    orthonormalise,
    project,
    reduce,
    unflatten_conv,
)
from paramerge.errors import ShapeError

strengths = st.floats(-1.0, 2.0).map(lambda s: round(s, 3))


@law
@given(reductions())
def test_t2_reducing_twice_is_reducing_once(case: Reduction) -> None:
    W, Q = case.weight.W, case.Q
    once = reduce(W, Q)
    assert norm2(reduce(once, Q) - once) <= bound(W.shape, norm=case.weight.norm)
    assert norm2(Q.T @ once) <= bound(W.shape, norm=case.weight.norm)


@law
@given(reductions())
def test_t2_reduce_and_project_are_the_dense_projectors(case: Reduction) -> None:
    """The oracle is plain NumPy with the d x d matrices that the library never forms."""
    W, Q = case.weight.W, case.Q
    limit = bound(W.shape, norm=case.weight.norm)
    assert norm2(reduce(W, Q) - complement(Q) @ W) <= limit
    assert norm2(project(Q, W) - projector(Q) @ W) <= limit
    assert norm2(project(Q, W) + reduce(W, Q) - W) <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_t2_holds_in_every_dtype(dtype: str, library: str) -> None:
    """In working precision to its eps; rounded to storage between, to the rounding of the entries."""

    @law
    @given(reductions(("wide", "tall", "deficient")))
    def check(case: Reduction) -> None:
        W = stored(case.weight.W, dtype, library)
        Q = orthonormalise(stored(case.Q, "float64", library)).Q
        once = reduce(W, Q)
        limit = bound(W.shape, norm=case.weight.norm, eps=WORKING_EPS[dtype])
        assert norm2(widened(reduce(once, Q)) - widened(once)) <= limit
        rounded = stored(widened(once), dtype, library)
        rounding = ROUNDOFF[dtype] * float(np.linalg.norm(widened(once)))
        rounding += SMALLEST[dtype] * math.sqrt(case.weight.W.size)
        assert norm2(widened(reduce(rounded, Q)) - widened(rounded)) <= limit + rounding

    check()


@law
@given(reductions(), strengths, strengths)
def test_t2s_strengths_compose(case: Reduction, s: float, t: float) -> None:
    """Twice at s is once at 1 - (1 - s)^2, and s then t is once at 1 - (1 - s)(1 - t)."""
    W, Q = case.weight.W, case.Q
    limit = bound(W.shape, norm=8 * case.weight.norm)
    assert norm2(reduce(reduce(W, Q, s), Q, s) - reduce(W, Q, 1 - (1 - s) ** 2)) <= limit
    assert norm2(reduce(reduce(W, Q, s), Q, t) - reduce(W, Q, 1 - (1 - s) * (1 - t))) <= limit
    assert norm2(reduce(W, Q, s) - (W - s * projector(Q) @ W)) <= limit


@law
@given(reductions(("wide", "square", "tall", "deficient")), strengths)
def test_t2s_only_strength_1_lowers_the_rank(case: Reduction, s: float) -> None:
    W, Q = case.weight.W, case.Q
    rank = numerical_rank(reduce(W, Q, s), rtol=1e-10, reference=case.weight.norm)
    assert rank == case.weight.rank - (case.inside if s == 1.0 else 0)


@law
@given(columns(), generators(), st.sampled_from([1.0, -3.0, 1e-8, 1e8]))
def test_t7_only_the_span_of_b_counts(B: Matrix, rng: np.random.Generator, scale: float) -> None:
    """``B -> B G``: same projector for every invertible G, to rounding times the condition of B and G."""
    d, r = B.shape
    basis = orthonormalise(B)
    other = orthonormalise(scale * (B @ invertible(rng, r)))
    assert basis.rank == other.rank == r
    assert norm2(projector(basis.Q) - projector(other.Q)) <= bound((d, r), norm=100.0)
    W = rng.standard_normal((d, 5))
    assert norm2(reduce(W, basis.Q) - reduce(W, other.Q)) <= bound((d, 5), norm=100.0 * norm2(W))


@law
@given(columns(), generators())
def test_t7_the_scale_of_a_column_does_not_count(B: Matrix, rng: np.random.Generator) -> None:
    """Columns at 1e-8 beside columns at 1e8: exact when the scales are powers of two."""
    scale = 2.0 ** rng.integers(-27, 28, B.shape[1])
    for method in ("qr", "gram-schmidt"):
        np.testing.assert_allclose(
            orthonormalise(B * scale, method=method).Q,  # type: ignore[arg-type]
            orthonormalise(B, method=method).Q,  # type: ignore[arg-type]
            rtol=0,
            atol=bound(B.shape, norm=10.0),
        )


@law
@given(columns(), generators())
def test_t7_a_signed_permutation_of_the_columns_changes_nothing(B: Matrix, rng: np.random.Generator) -> None:
    shuffled = B[:, rng.permutation(B.shape[1])] * rng.choice([-1.0, 1.0], B.shape[1])
    first, second = orthonormalise(B).Q, orthonormalise(shuffled).Q
    assert norm2(projector(first) - projector(second)) <= bound(B.shape, norm=10.0)


conv_shapes = st.tuples(st.integers(2, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


@law
@given(conv_shapes, generators(), st.data())
def test_t10_a_basis_for_a_convolution_is_c_out_by_r(
    shape: tuple[int, int, int, int], rng: np.random.Generator, data: st.DataObject
) -> None:
    W = rng.standard_normal(shape)
    r = data.draw(st.integers(0, shape[0]))
    Q = orthonormalise(rng.standard_normal((shape[0], r))).Q
    reduced = reduce(W, Q)
    assert reduced.shape == project(Q, W).shape == shape
    by_hand = W - np.einsum("or,pr,pihw->oihw", Q, Q, W)
    np.testing.assert_allclose(reduced, by_hand, atol=bound(shape, norm=norm2(W.reshape(shape[0], -1))))
    flat = flatten_conv(W)
    assert flat.shape == (shape[0], math.prod(shape[1:]))
    np.testing.assert_array_equal(unflatten_conv(flat, shape), W)
    np.testing.assert_array_equal(flat[:, 0], W[:, 0, 0, 0])


@law
@given(conv_shapes, generators())
def test_t10_the_shape_in_the_remark_deletes_the_layer(
    shape: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    """``B`` of the paper's shape c_out x (c_in h w) has rank c_out once that is the smaller: W becomes 0."""
    columns_of_b = math.prod(shape[1:])
    basis = orthonormalise(rng.standard_normal((shape[0], columns_of_b)))
    assert basis.rank == min(shape[0], columns_of_b)
    W = rng.standard_normal(shape)
    left = norm2(flatten_conv(reduce(W, basis.Q)))
    if columns_of_b >= shape[0]:
        assert left <= bound(shape, (columns_of_b,), norm=norm2(flatten_conv(W)))
    else:
        assert left > 1e-3


def test_flattening_leaves_matrices_alone_and_refuses_vectors() -> None:
    W = np.arange(6.0).reshape(2, 3)
    assert flatten_conv(W).shape == (2, 3)
    assert unflatten_conv(W, (2, 3)).shape == (2, 3)
    assert flatten_conv(np.zeros((4, 0, 3, 3))).shape == (4, 0)
    with pytest.raises(ShapeError, match="fewer than two axes"):
        flatten_conv(np.zeros(3))
    for shape in ((), (3, 2), (2, 2, 2), (1, 6)):
        with pytest.raises(ShapeError, match="not a flattened weight"):
            unflatten_conv(W, shape)
