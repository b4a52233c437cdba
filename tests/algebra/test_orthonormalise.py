"""Bases: which columns count, what comes back, and what is refused as a basis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Matrix, bound, columns, generators, law, norm2, orthogonal, projector

from paramerge.algebra import (
    leading_output_directions,
    orthonormalise,
    require_full_rank,
    require_orthonormal,
)
from paramerge.errors import UsageError

METHODS = ("qr", "gram-schmidt")


@pytest.mark.parametrize("method", METHODS)
def test_an_orthonormal_basis_of_the_span(method: str) -> None:
    @law
    @given(columns())
    def check(B: Matrix) -> None:
        basis = orthonormalise(B, method=method)  # type: ignore[arg-type]
        r = B.shape[1]
        assert basis.Q.shape == B.shape
        assert (basis.rank, basis.columns, basis.deficiency) == (r, r, 0)
        assert norm2(basis.Q.T @ basis.Q - np.eye(r)) <= bound(B.shape)
        assert norm2(B - projector(basis.Q) @ B) <= bound(B.shape, norm=norm2(B))
        R = basis.Q.T @ B
        assert norm2(np.tril(R, -1)) <= bound(B.shape, norm=norm2(B))
        assert (np.diagonal(R) > 0).all()

    check()


def test_gram_schmidt_keeps_the_first_columns_that_span_and_qr_the_strongest_directions() -> None:
    e = np.eye(4)
    B = np.stack([e[0], e[0], e[1], e[0] + e[1]], axis=1)
    kept = orthonormalise(B, method="gram-schmidt").Q
    np.testing.assert_allclose(kept, e[:, :2], atol=bound((4,)))
    strongest = orthonormalise(B).Q
    U = np.linalg.svd(B / np.linalg.norm(B, axis=0))[0][:, :2]
    np.testing.assert_allclose(np.abs(np.sum(strongest * U, axis=0)), 1.0, atol=bound((4,)))


def test_gram_schmidt_needs_its_second_pass() -> None:
    """Laeuchli's columns: one pass of projections leaves them far from orthogonal."""
    tiny = 1e-9
    B = np.concatenate([np.ones((1, 3)), tiny * np.eye(3)])
    basis = orthonormalise(B, rtol=1e-12, method="gram-schmidt")
    assert basis.rank == 3
    assert norm2(basis.Q.T @ basis.Q - np.eye(3)) <= bound(B.shape)


@pytest.mark.parametrize("method", METHODS)
def test_the_cut_is_of_unit_columns_and_at_it_is_not_above_it(method: str) -> None:
    B = np.array([[1.0, 1.0], [0.0, 1e-5]])
    cut = 1e-5 if method == "gram-schmidt" else 0.5e-5
    assert orthonormalise(B, rtol=0.99 * cut, method=method).rank == 2  # type: ignore[arg-type]
    assert orthonormalise(B, rtol=1.01 * cut, method=method).rank == 1  # type: ignore[arg-type]
    assert orthonormalise(np.eye(2), rtol=0.999, method=method).rank == 2  # type: ignore[arg-type]
    assert orthonormalise(B, rtol=0.0, method=method).rank == 2  # type: ignore[arg-type]
    assert orthonormalise(np.zeros((2, 2)), rtol=0.0, method=method).rank == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "noise"), [("float64", 2.0**-52), ("float32", 2.0**-23)])
def test_the_default_cut_is_sixteen_roundings_or_one_for_each_row(
    method: str, dtype: str, noise: float
) -> None:
    factor = 1.0 if method == "gram-schmidt" else 2.0  # singular values of [e1, e1 + t e2] are near t / 2
    for d, roundings in ((2, 16), (64, 64)):
        B = np.zeros((d, 2))
        B[0] = 1.0
        B[1, 1] = 0.9 * factor * roundings * noise
        assert orthonormalise(B.astype(dtype), method=method).rank == 1  # type: ignore[arg-type]
        B[1, 1] *= 1.3
        assert orthonormalise(B.astype(dtype), method=method).rank == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "roundoff"), [("float16", 2.0**-11)])
def test_the_default_cut_of_half_precision_is_that_of_storage(dtype: str, roundoff: float) -> None:
    """Two unit columns: ``roundoff * sqrt(2)`` in relative terms."""
    for share, rank in ((0.8, 1), (1.25, 2)):
        angle = share * 2 * roundoff * np.sqrt(2)
        B = np.zeros((40, 2), dtype=dtype)  # as often as there are columns, not rows
        B[0], B[1, 1] = 1.0, angle
        assert orthonormalise(B).rank == rank


@law
@given(generators(), st.integers(1, 6))
def test_more_columns_than_rows_span_everything(rng: np.random.Generator, d: int) -> None:
    for method in METHODS:
        basis = orthonormalise(rng.standard_normal((d, d + 3)), rtol=1e-9, method=method)  # type: ignore[arg-type]
        assert (basis.rank, basis.columns, basis.deficiency) == (d, d + 3, 3)
        assert norm2(projector(basis.Q) - np.eye(d)) <= bound((d, d))


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_columns_whose_squares_overflow_or_vanish(scale: float) -> None:
    B = np.array([[3.0, 1.0], [4.0, 0.0]])
    basis = orthonormalise(B * [scale, 1.0])
    np.testing.assert_allclose(basis.Q, [[0.6, 0.8], [0.8, -0.6]], atol=bound((2,)))


def test_no_columns_span_nothing() -> None:
    for method in METHODS:
        basis = orthonormalise(np.zeros((3, 0)), method=method)  # type: ignore[arg-type]
        assert basis.Q.shape == (3, 0)
        assert (basis.rank, basis.columns, basis.deficiency) == (0, 0, 0)


def test_full_rank_is_required_at_the_cut_given() -> None:
    B = np.array([[1.0, 1.0], [0.0, 1e-5]])
    assert require_full_rank(B).rank == 2
    with pytest.raises(UsageError, match="not independent"):
        require_full_rank(B, rtol=1e-4)


@law
@given(generators(), st.integers(1, 40), st.integers(0, 6))
def test_orthonormal_is_what_qr_gives(rng: np.random.Generator, d: int, r: int) -> None:
    require_orthonormal(orthogonal(rng, d)[:, :r])
    require_orthonormal(np.linalg.qr(rng.standard_normal((d, min(d, r))))[0].astype(np.float32))


@pytest.mark.parametrize("d", [16, 32, 320])
def test_directions_of_dependent_factors_are_orthonormal_to_the_algebra(d: int) -> None:
    """Left singular vectors of thin factors are the product of two Qs, with the roundings of both."""
    rng = np.random.default_rng(d)
    for _ in range(50):
        r = int(rng.integers(2, 16))
        up, down = rng.standard_normal((d, r)), rng.standard_normal((r, 48))
        up[:, -1] = up[:, 0] * (1 + 1e-7)
        down *= np.logspace(0, -6, r)[:, None]
        require_orthonormal(leading_output_directions(up, down, rank=int(rng.integers(1, r))))


def test_the_bound_of_orthonormality() -> None:
    """``(24 + sqrt(d) / 4) sqrt(r) eps``: just inside and just outside, for tall and for square."""
    for d in (2, 50):
        limit = (24 + d**0.5 / 4) * 2**0.5 * 2.0**-52
        Q = np.eye(d)[:, :2]
        inside, outside = Q.copy(), Q.copy()
        inside[1, 0], outside[1, 0] = 0.6 * limit, 0.8 * limit  # both off-diagonal entries: times sqrt(2)
        require_orthonormal(inside)
        with pytest.raises(UsageError, match="not orthonormal"):
            require_orthonormal(outside)
    require_orthonormal(np.array([[1.0 + 2.0**-49], [0.0]]))  # its square is 1 + 16 eps
    with pytest.raises(UsageError, match="not orthonormal"):
        require_orthonormal(np.array([[1.0 + 2.0**-48], [0.0]]))
    with pytest.raises(UsageError, match=r"not orthonormal(.|\n)*adapter.safetensors"):
        require_orthonormal(2 * np.eye(2), "adapter.safetensors")
    for value in (np.nan, np.inf):
        with pytest.raises(UsageError, match="not orthonormal"):
            require_orthonormal(np.array([[value], [0.0]]))
    with pytest.raises(UsageError, match="not orthonormal"):  # three columns in a plane
        require_orthonormal(np.ones((2, 3)))
