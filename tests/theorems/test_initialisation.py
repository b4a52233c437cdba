"""T9: a ``B`` of zeros, the paper's initialisation, cannot be trained; nor can one with a column of zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import find, given
from hypothesis import strategies as st
from strategies import LIBRARIES, bound, columns, generators, invertible, law, search, stored, widened

from paramerge.algebra import orthonormalise, reduce, require_full_rank
from paramerge.errors import UsageError

entries = st.integers(-2, 2)


@st.composite
def small_integers(draw: st.DrawFn) -> np.ndarray:
    """(d, r) with r from 1 to d and entries from -2 to 2: often of dependent columns."""
    d = draw(st.integers(1, 4))
    r = draw(st.integers(1, d))
    rows = draw(st.lists(st.lists(entries, min_size=r, max_size=r), min_size=d, max_size=d))
    return np.asarray(rows, dtype=np.float64)


def plain_gradient(B: np.ndarray) -> np.ndarray:
    """The gradient of a training step through plain QR, as the paper's equation 2 has it."""
    leaf = torch.from_numpy(B.copy()).requires_grad_()
    Q = torch.linalg.qr(leaf).Q
    W = torch.arange(1.0, 3.0 * B.shape[0] + 1.0, dtype=torch.float64).reshape(B.shape[0], 3).sin()
    (W - Q @ (Q.T @ W)).square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


def test_t9_initialising_b_to_zero_cannot_run() -> None:
    """Find the smallest ``B`` whose training step has no gradient: it is a single zero."""
    B = find(small_integers(), lambda B: not np.isfinite(plain_gradient(B)).all(), settings=search)
    assert B.shape == (1, 1)
    assert B[0, 0] == 0.0


@pytest.mark.parametrize(("d", "r"), [(1, 1), (4, 1), (6, 3), (5, 5)])
def test_t9_qr_of_zeros_in_closed_form(d: int, r: int) -> None:
    """Householder QR of 0 is the first r unit vectors: the first r output channels are gone at step 0."""
    W = np.random.default_rng(9).standard_normal((d, 7))
    Q = torch.linalg.qr(torch.zeros(d, r, dtype=torch.float64)).Q.numpy()
    np.testing.assert_array_equal(Q @ Q.T, np.diag([1.0] * r + [0.0] * (d - r)))
    left = reduce(W, Q)
    np.testing.assert_array_equal(left[:r], np.zeros((r, 7)))
    np.testing.assert_array_equal(left[r:], W[r:])
    gradient = plain_gradient(np.zeros((d, r)))
    assert not np.isfinite(gradient).any()
    assert np.isnan(gradient[:r]).all()


@law
@given(st.integers(2, 6), generators())
def test_t9_one_column_of_zeros_is_enough(d: int, rng: np.random.Generator) -> None:
    B = rng.standard_normal((d, int(rng.integers(2, d + 1))))
    B[:, rng.integers(0, B.shape[1])] = 0.0
    assert not np.isfinite(plain_gradient(B)).all()
    assert orthonormalise(B).rank == B.shape[1] - 1
    with pytest.raises(UsageError, match="not independent"):
        require_full_rank(B)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_t9_zeros_have_no_column_space(dtype: str, library: str) -> None:
    """Nothing is made up, so nothing is removed; and at the start of a training it is an error."""
    B = stored(np.zeros((5, 3)), dtype, library)
    for method in ("qr", "gram-schmidt"):
        basis = orthonormalise(B, method=method)  # type: ignore[arg-type]
        assert tuple(basis.Q.shape) == (5, 0)
        assert (basis.rank, basis.columns, basis.deficiency) == (0, 3, 3)
    W = stored(np.ones((5, 2)), dtype, library)
    np.testing.assert_array_equal(widened(reduce(W, orthonormalise(B).Q)), np.ones((5, 2)))
    with pytest.raises(UsageError, match=r"not independent(.|\n)*layer 7(.|\n)*rank 3(.|\n)*rank 0"):
        require_full_rank(B, where="layer 7")


@law
@given(small_integers())
def test_t9_what_is_not_refused_has_a_gradient(B: np.ndarray) -> None:
    """And what has dependent columns is refused; integers leave no doubt about the rank."""
    rank = np.linalg.matrix_rank(B)
    if rank == B.shape[1]:
        assert require_full_rank(B).rank == rank
        assert np.isfinite(plain_gradient(B)).all()
        leaf = torch.from_numpy(B.copy()).requires_grad_()
        orthonormalise(leaf).Q.sum().backward()
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())
    else:
        assert orthonormalise(B).rank == rank
        with pytest.raises(UsageError, match="not independent"):
            require_full_rank(B)


@law
@given(columns(), generators())
def test_t9_dependent_columns_are_reported_not_invented(B: np.ndarray, rng: np.random.Generator) -> None:
    """Columns that are combinations of others add nothing to the span, in both methods."""
    r = B.shape[1]
    extra = int(rng.integers(1, 4))
    if r == 0:
        return
    dependent = B @ rng.standard_normal((r, extra)) if rng.random() < 0.5 else B[:, rng.integers(0, r, extra)]
    mixed = np.concatenate([B, dependent], axis=1)[:, rng.permutation(r + extra)]
    limit = bound(mixed.shape, norm=100.0)
    truth = np.linalg.qr(B)[0]
    for method in ("qr", "gram-schmidt"):
        basis = orthonormalise(mixed, method=method, rtol=1e-9)  # type: ignore[arg-type]
        assert (basis.rank, basis.deficiency) == (r, extra)
        assert np.linalg.norm(basis.Q @ basis.Q.T - truth @ truth.T, 2) <= 100 * limit
    assert orthonormalise(B @ invertible(rng, r)).deficiency == 0
