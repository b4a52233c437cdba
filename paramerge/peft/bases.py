"""From the trained B to the K of the forward pass, ``y - s K K^T y``: Q of B = QR, or the soft projector's.

All are differentiable, of one matrix (d, r) or a batch of them (n, d, r), in the dtype of B, and depend on
``span(B)`` alone (the soft one on more). Only ``K K^T`` counts, so signs are left as they come.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["basis_of", "cholesky_qr2", "nearest_projector", "soft_factor"]


def basis_of(B: Tensor, method: str, epsilon: float) -> Tensor:
    """K for ``method``: ``qr``, ``cholesky`` or ``soft`` (the only one that reads ``epsilon``)."""
    if method == "soft":
        return soft_factor(B, epsilon)
    if method == "cholesky":
        return cholesky_qr2(B)
    Q: Tensor = torch.linalg.qr(B)[0]
    return Q


def cholesky_qr2(B: Tensor) -> Tensor:
    """Q of B by two rounds of ``B R^-1`` with ``R^T R = B^T B``; by Householder QR where that is not exact.

    Matrix products and small triangular solves, which a GPU is quick at, against a QR that it does column by
    column. In float32 the rounds are exact to a few roundings up to a condition of about 1e3 (B is kept near
    orthonormal); beyond that, or where a Cholesky fails, the whole batch goes through QR.
    """
    with torch.autocast(B.device.type, enabled=False):
        Q, failed = B, torch.zeros((), dtype=torch.bool, device=B.device)
        for _ in range(2):
            L, info = torch.linalg.cholesky_ex(Q.mT @ Q)
            failed = failed | (info != 0).any()
            Q = torch.linalg.solve_triangular(L.mT, Q, upper=True, left=False)
        found = Q.detach()
        identity = torch.eye(B.shape[-1], dtype=B.dtype, device=B.device)
        distance = torch.linalg.matrix_norm(found.mT @ found - identity).amax()
        bound = 8 * max(B.shape[-2:]) * torch.finfo(B.dtype).eps
        if bool(failed | ~(distance <= bound)):  # one look at the device for the whole batch
            Q = torch.linalg.qr(B)[0]
    return Q


def soft_factor(B: Tensor, epsilon: float) -> Tensor:
    """K with ``K K^T = B (B^T B + eps I)^-1 B^T``: a principal direction s of B counts s^2 / (s^2 + eps)."""
    with torch.autocast(B.device.type, enabled=False):
        shift = epsilon * torch.eye(B.shape[-1], dtype=B.dtype, device=B.device)
        L = torch.linalg.cholesky(B.mT @ B + shift)
        K: Tensor = torch.linalg.solve_triangular(L.mT, B, upper=True, left=False)
    return K


def nearest_projector(B: Tensor, epsilon: float) -> Tensor:
    """Q (d, m) with ``Q Q^T`` the projector nearest to the soft one: the directions that count 1/2 or more.

    m may be 0: then the layer is nearer to being left alone. No gradient.
    """
    U, s, _ = torch.linalg.svd(B.detach().double(), full_matrices=False)
    Q: Tensor = U[:, s**2 >= epsilon]
    return Q
