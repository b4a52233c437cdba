"""The leading singular directions of a difference: exact for small matrices, randomised for big ones.

The randomised way is Halko, Martinsson and Tropp's (SIAM Review 53, 2011): a random range with power
iterations, begun by ``torch.svd_lowrank``. What it loses is bounded afterwards, from the matrix itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_EXACT_SIDE = 320
"""The largest shorter side that is decomposed as a whole."""
_OVERSAMPLING = 8
_PROBES = 10
"""Random probes outside of the range: their bound fails once in 1e10 (section 4.3)."""


@dataclass(frozen=True)
class Leading:
    """Singular triplets of a matrix, in descending order.

    Attributes
    ----------
    U, s, Vh:
        (d, m), (m,) and (m, k).
    norm:
        The Frobenius norm of the whole matrix.
    beyond:
        A bound for the spectral norm outside of the range of ``U``; 0 where nothing is.
    """

    U: np.ndarray
    s: np.ndarray
    Vh: np.ndarray
    norm: float
    beyond: float

    @property
    def is_exact(self) -> bool:
        """Whether all of the matrix was decomposed."""
        return self.beyond == 0

    def error(self, rank: int) -> float:
        """``||D - D_r|| / ||D||`` for the first ``rank`` triplets."""
        return _share(self.norm**2 - float(np.sum(self.s[:rank] ** 2)), self.norm**2)

    def excess(self, rank: int) -> float:
        """The most by which the error exceeds the best of this rank, relative to ``||D||``.

        With ``D = P D + E``, P the projector on the range: the best rank r holds at most ``sum s_i^2`` and
        the squares of E's r largest singular values (Ky Fan), so the squares differ by at most ``r ||E||^2``.
        """
        if self.is_exact or not self.norm:
            return 0.0
        rest = max(self.norm**2 - float(np.sum(self.s**2)), 0.0)
        gap = min(rest, rank * self.beyond**2)
        error = self.error(rank) * self.norm
        best = math.sqrt(max(error**2 - gap, 0.0))
        return (error - best) / self.norm

    def rank_for(self, energy: float) -> int | None:
        """The fewest triplets that hold this share of the squared norm; None where more are needed."""
        held = np.cumsum(self.s**2)
        enough = np.flatnonzero(held >= energy * self.norm**2 * (1 - 1e-12))
        return int(enough[0]) + 1 if len(enough) else None


def leading(D: np.ndarray, rank: int | None = None, energy: float | None = None, seed: int = 0) -> Leading:
    """Decompose ``D`` (d, k) float64 as far as ``rank`` or ``energy`` needs; at least one of them is given.

    Up to a shorter side of 320 the whole is decomposed; above that only as much as is needed, in random
    ranges that are doubled until they hold the energy. The same input gives the same numbers.
    """
    norm = float(np.linalg.norm(D))
    shorter = min(D.shape)
    wanted = shorter if rank is None else min(rank, shorter)
    size = wanted if energy is None else min(wanted, 32)
    while True:
        if shorter <= _EXACT_SIDE or 3 * (size + _OVERSAMPLING) > shorter:
            return _full_svd(D, norm)
        found = _randomised(D, norm, size, seed)
        if energy is None or size == wanted or found.rank_for(energy) is not None:
            return found
        size = min(2 * size, wanted)


def _full_svd(D: np.ndarray, norm: float) -> Leading:
    """By an SVD, or for big matrices by the smaller Gram matrix: then to 1e-8 of the largest value."""
    if min(D.shape) <= _EXACT_SIDE:
        tall = D.shape[0] >= D.shape[1]
        Q, R = np.linalg.qr(D if tall else D.T)
        U, s, Vh = np.linalg.svd(R)
        left = Q @ U
        return Leading(left, s, Vh, norm, 0.0) if tall else Leading(Vh.T, s, left.T, norm, 0.0)
    if D.shape[0] > D.shape[1]:
        turned = _full_svd(D.T, norm)
        return Leading(turned.Vh.T, turned.s, turned.U.T, norm, 0.0)
    U = np.linalg.eigh(D @ D.T)[1][:, ::-1]
    rows = U.T @ D
    s = np.linalg.norm(rows, axis=1)
    return Leading(U, s, rows / np.where(s > 0, s, 1)[:, None], norm, 0.0)


def _randomised(D: np.ndarray, norm: float, size: int, seed: int) -> Leading:
    """A range found in float32 and cleaned of its rounding by one more power iteration in float64."""
    import torch

    matrix = torch.from_numpy(np.ascontiguousarray(D))
    largest = float(np.abs([D.min(), D.max()]).max())
    # scaled, so that no difference is too small or too large for float32
    narrow = torch.div(matrix, largest, out=torch.empty(matrix.shape, dtype=torch.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rough, _, _ = torch.svd_lowrank(narrow, q=size + _OVERSAMPLING, niter=1)
        probes = matrix @ torch.randn(D.shape[1], _PROBES, dtype=matrix.dtype)
    del narrow
    Q = torch.linalg.qr(matrix @ (matrix.T @ rough.double()))[0]
    right, triangle = torch.linalg.qr(matrix.T @ Q)
    U, s, Vh = torch.linalg.svd(triangle.T)
    outside = probes - Q @ (Q.T @ probes)
    beyond = 10 * math.sqrt(2 / math.pi) * float(torch.linalg.vector_norm(outside, dim=0).max())
    # at least its rounding, so that a randomised result is never called exact
    beyond = max(beyond, norm * 2.0**-52)
    return Leading((Q @ U).numpy(), s.numpy(), (Vh @ right.T).numpy(), norm, beyond)


def _share(squared: float, of: float) -> float:
    return math.sqrt(max(squared, 0.0) / of) if of else 0.0
