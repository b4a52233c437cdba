"""The projector that was applied, if any: the basis Q with ``W' = W - Q Q^T W``, and its error.

For a given Q the squared distance is ``||W' - W + Q Q^T W||^2 = ||D||^2 + tr(Q^T (W' W'^T - D D^T) Q)`` with
``D = W' - W``. So the nearest PaRa has the eigenvectors of ``D D^T - W' W'^T`` with the largest eigenvalues,
and each of them brings its eigenvalue nearer. Where a projector was applied they are in the range of D,
disturbed by the rounding of W': they are brought back to the directions that W' does not reach, and the
eigenvalue problem is solved in both ranges together. That comes within a tenth of the rounding itself (tests
hold it to that).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paramerge.extract.lowrank import leading
from paramerge.files.dtypes import unit_roundoff

_MOST = 256
"""The most directions that are looked for in one layer."""
_SMALLEST = {"F16": 2.0**-25, "F8_E4M3": 2.0**-10, "F8_E5M2": 2.0**-17}
"""Half of the smallest step of formats whose range is short."""


@dataclass(frozen=True)
class NearestPara:
    """The nearest PaRa.

    Attributes
    ----------
    Q:
        (d, r) float64 with orthonormal columns, the one that explains most first.
    error:
        ``||W' - (W - Q Q^T W)|| / ||W' - W||``.
    rounding:
        The part of that number that rounding W' to its dtype can make.
    strength:
        The s for which ``W - s P W`` is nearest, P the projector on the difference's output directions: 1 for
        a PaRa, or the strength that it was applied with.
    """

    Q: np.ndarray
    error: float
    rounding: float
    strength: float

    @property
    def is_para(self) -> bool:
        """Whether rounding explains all that is left: the difference is this PaRa."""
        return self.Q.shape[1] > 0 and self.error <= 1.01 * self.rounding


def nearest_para(
    W: np.ndarray, tuned: np.ndarray, dtype: str, rank: int | None = None, energy: float | None = None
) -> NearestPara:
    """The PaRa that comes nearest to turning ``W`` into ``tuned``, both (d, k) float64.

    Parameters
    ----------
    dtype:
        The stored dtype of ``tuned``, whose rounding decides which directions count.
    rank, energy:
        At most so many directions; the fewest that lower the squared distance by this share of the possible.
    """
    D = tuned - W
    norm = float(np.linalg.norm(D))
    noise = _rounding_of(tuned, dtype)
    if not norm:
        return NearestPara(np.zeros((len(W), 0)), 0.0, 0.0, 1.0)
    U = _range(D, norm, noise)
    Z = _with_null_space(U, tuned, noise)
    gains, vectors = np.linalg.eigh(_outer(Z.T @ D) - _outer(Z.T @ tuned))
    order = np.argsort(gains)[::-1]
    gains = gains[order]
    kept = int(np.sum(gains > max(2 * _spectral(noise, D.shape) ** 2, norm**2 * 1e-14)))
    if energy is not None and kept:
        share = np.cumsum(gains[:kept]) / np.sum(gains[:kept])
        kept = int(np.flatnonzero(share >= energy * (1 - 1e-12))[0]) + 1
    kept = kept if rank is None else min(kept, rank)
    Q = np.linalg.qr(Z @ vectors[:, order[:kept]])[0]
    removed = Q.T @ W
    rest = float(np.linalg.norm(D + Q @ removed))
    used = U.T @ W
    size = float(np.sum(used**2))
    strength = -float(np.sum((U.T @ D) * used)) / size if size else 1.0
    return NearestPara(Q, rest / norm, noise / norm, strength)


def _range(D: np.ndarray, norm: float, noise: float) -> np.ndarray:
    """The directions that D writes to, without those that rounding alone explains."""
    energy = 1 - min((noise / norm) ** 2, 0.5) / 2
    found = leading(D, rank=_MOST, energy=min(energy, 1 - 1e-14))
    rank = max(1, int(np.sum(found.s > max(_spectral(noise, D.shape), norm * 1e-12))))
    return found.U[:, :rank]


def _with_null_space(U: np.ndarray, tuned: np.ndarray, noise: float) -> np.ndarray:
    """An orthonormal basis of U, and of U without the part that ``tuned`` still reaches.

    ``(I + T T^T / m)^-1 U`` with m at the size of the noise, by the smaller Gram matrix of T.
    """
    d, k = tuned.shape
    damping = max(noise**2 / min(d, k), float(np.sum(tuned**2)) * 2.0**-50, np.finfo(np.float64).tiny)
    if d <= k:
        gram = _outer(tuned)
        gram[np.diag_indices(d)] += damping
        cleaned = damping * np.linalg.solve(gram, U)
    else:
        gram = _outer(tuned.T)
        gram[np.diag_indices(k)] += damping
        cleaned = U - tuned @ np.linalg.solve(gram, tuned.T @ U)
    lengths = np.linalg.norm(cleaned, axis=0)
    cleaned = cleaned / np.where(lengths > 0, lengths, 1)
    both = np.concatenate([U, cleaned], axis=1)
    left, s, _ = np.linalg.svd(both, full_matrices=False)
    return np.asarray(left[:, s > s[0] * 1e-12])


def _rounding_of(tuned: np.ndarray, dtype: str) -> float:
    """The largest Frobenius norm that rounding every element of ``tuned`` can have."""
    relative = unit_roundoff(dtype) * float(np.linalg.norm(tuned))
    return relative + _SMALLEST.get(dtype, 0.0) * math.sqrt(tuned.size)


def _spectral(noise: float, shape: tuple[int, ...]) -> float:
    """The largest singular value of independent errors whose Frobenius norm is ``noise``."""
    return noise * (1 / math.sqrt(shape[0]) + 1 / math.sqrt(shape[1]))


def _outer(M: np.ndarray) -> np.ndarray:
    return np.asarray(M @ M.T)
