"""The decompositions behind ``extract``, against NumPy's and SciPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

from paramerge.extract.kronecker import nearest_kronecker
from paramerge.extract.lowrank import leading
from paramerge.extract.projector import nearest_para

Matrix = NDArray[np.float64]
DTYPES = {"F16": np.float16, "F32": np.float32}


def falling(d: int, k: int, seed: int, power: float = 1.0) -> Matrix:
    """A random matrix whose singular values fall as ``i^-power``."""
    rng = np.random.default_rng(seed)
    n = min(d, k)
    left, right = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (d, k))
    return np.asarray((left * np.arange(1, n + 1.0) ** -power) @ right.T)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (400, 350), (350, 700)])
@pytest.mark.parametrize("rank", [1, 5, 20])
def test_the_leading_directions_are_those_of_an_svd(shape: tuple[int, int], rank: int) -> None:
    D = falling(*shape, seed=rank)
    found, (U, s, Vh) = leading(D, rank=rank), np.linalg.svd(D, full_matrices=False)
    assert found.is_exact == (min(shape) <= 320)
    best = (U[:, :rank] * s[:rank]) @ Vh[:rank]
    mine = (found.U[:, :rank] * found.s[:rank]) @ found.Vh[:rank]
    error, least = (np.linalg.norm(D - M) / np.linalg.norm(D) for M in (mine, best))
    np.testing.assert_allclose(found.error(rank), error, atol=1e-7)
    assert least - 1e-12 <= error <= least + found.excess(rank) + 1e-12
    assert error <= 1.05 * least


@given(st.integers(0, 1000), st.floats(0.0, 2.0), st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_the_bound_holds_for_any_spectrum(seed: int, power: float, rank: int) -> None:
    D = falling(330, 340, seed % 7, power)
    found, s = leading(D, rank=rank, seed=seed), np.linalg.svd(D, compute_uv=False)
    best = np.sqrt(np.sum(s[rank:] ** 2)) / np.linalg.norm(s)
    assert best - 1e-9 <= found.error(rank) <= best + found.excess(rank) + 1e-9


@pytest.mark.parametrize("shape", [(60, 50), (330, 500), (500, 330)])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999, 1.0])
def test_the_fewest_directions_for_an_energy(shape: tuple[int, int], energy: float) -> None:
    D = falling(*shape, seed=3)
    held = np.cumsum(np.linalg.svd(D, compute_uv=False) ** 2)
    wanted = int(np.flatnonzero(held >= energy * held[-1] * (1 - 1e-12))[0]) + 1
    assert leading(D, energy=energy).rank_for(energy) == pytest.approx(wanted, abs=energy == 1.0 and 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_matrix_gives_the_same_numbers(seed: int) -> None:
    D = falling(330, 400, seed=0)
    one, other = leading(D, rank=4, seed=seed), leading(D, rank=4, seed=seed)
    np.testing.assert_array_equal(one.U, other.U)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3, 4, 5), (4, 4, 6, 9), (1, 5, 7, 2), (24, 16, 20, 18)])
def test_a_kronecker_product_is_found_again(sizes: tuple[int, int, int, int], shuffled: bool) -> None:
    a1, a2, b1, b2 = sizes
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((a1, a2)), rng.standard_normal((b1, b2))
    order = np.arange(a1 * b1).reshape(a1, b1).T.reshape(-1) if shuffled else np.arange(a1 * b1)
    found = nearest_kronecker(np.kron(A, B)[order], a1, a2, shuffled=shuffled)
    assert found.error <= 3e-8  # a difference of squares
    np.testing.assert_allclose(np.kron(found.A, found.B), np.kron(A, B), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.A), np.linalg.norm(found.B))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_no_other_kronecker_product_is_nearer(seed: int) -> None:
    """Against alternating least squares from a random start, which ends in a stationary point."""
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((12, 10))
    found = nearest_kronecker(D, 3, 2)
    blocks = D.reshape(3, 4, 2, 5)
    A = rng.standard_normal((3, 2))
    for _ in range(200):
        B = np.einsum("apbq,ab->pq", blocks, A) / np.sum(A**2)
        A = np.einsum("apbq,pq->ab", blocks, B) / np.sum(B**2)
    other = np.linalg.norm(D - np.kron(A, B)) / np.linalg.norm(D)
    direct = np.linalg.norm(D - np.kron(found.A, found.B)) / np.linalg.norm(D)
    assert found.error == pytest.approx(direct, abs=1e-9)
    assert found.error <= other + 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 60), (96, 40), (350, 340)])
@pytest.mark.parametrize("which", ["random", "least"])
def test_a_projector_is_recovered(shape: tuple[int, int], dtype: str, which: str) -> None:
    """Q to a small multiple of the rounding; of the directions that W uses least, too."""
    rng = np.random.default_rng(1)
    W = falling(*shape, seed=2, power=0.5).astype(DTYPES[dtype]).astype(np.float64)
    Q = np.linalg.qr(rng.standard_normal((shape[0], 3)))[0]
    if which == "least":
        U = np.linalg.svd(W, full_matrices=False)[0]
        Q = U[:, -3:]
    tuned = (W - Q @ (Q.T @ W)).astype(DTYPES[dtype]).astype(np.float64)
    found = nearest_para(W, tuned, dtype)
    assert found.is_para and found.Q.shape[1] == 3
    rounding = np.linalg.norm(tuned - (W - Q @ (Q.T @ W))) / np.linalg.norm(tuned - W)
    assert found.error <= rounding * 1.1 + 1e-14  # the true Q is hardly nearer
    unit = np.finfo(DTYPES[dtype]).eps
    assert np.max(subspace_angles(found.Q, Q)) <= 40 * unit
    assert abs(found.strength - 1) <= 40 * unit


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_no_basis_of_the_rank_is_nearer(seed: int, rank: int) -> None:
    """Of a difference that is no PaRa: the eigenvalue problem in full, which is the optimum."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((10, 14))
    tuned = W - np.linalg.qr(rng.standard_normal((10, 3)))[0] @ rng.standard_normal((3, 14)) * 2
    D = tuned - W
    gains, vectors = np.linalg.eigh(D @ D.T - tuned @ tuned.T)
    best = vectors[:, gains > 0][:, ::-1][:, :rank]
    found = nearest_para(W, tuned, "F64", rank=rank)
    least = np.linalg.norm(D + best @ (best.T @ W)) / np.linalg.norm(D)
    assert found.error >= least - 1e-9
    assert not found.is_para


def test_what_is_no_projector_is_told() -> None:
    rng = np.random.default_rng(0)
    W = rng.standard_normal((64, 80))
    Q = np.linalg.qr(rng.standard_normal((64, 4)))[0]
    part = nearest_para(W, (W - 0.8 * Q @ (Q.T @ W)).astype(np.float16).astype(np.float64), "F16")
    assert not part.is_para and part.strength == pytest.approx(0.8, abs=0.02)
    lora = nearest_para(W, W + 0.1 * rng.standard_normal((64, 4)) @ rng.standard_normal((4, 80)), "F32")
    assert not lora.is_para and lora.error > 0.5
    assert nearest_para(W, W, "F32").Q.shape == (64, 0)
    rounded = nearest_para(W, W.astype(np.float16).astype(np.float64), "F16")
    assert rounded.Q.shape[1] == 0  # rounding alone names no direction
