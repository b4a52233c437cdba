"""From the trained B to the K of the forward pass, ``y - s K K^T y``: Q of B = QR, or the soft projector's.

All take one matrix (d, r) or a batch of them (n, d, r), in the dtype of B. Only ``K K^T`` counts, so signs
are left as they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from paramerge.algebra.arrays import orthonormal_bound


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A block without autocast for the device of ``tensor``, and without TensorFloat-32; nothing at all where
    there is neither."""
    kind = tensor.device.type
    if not torch.compiler.is_compiling() and torch.backends.cuda.matmul.allow_tf32:
        return _exact(kind)
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


@contextmanager
def _exact(kind: str) -> Iterator[None]:
    """A block without autocast and without TensorFloat-32, whose 11 bits would leak 1e-3."""
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = True


def basis_of(B: Tensor, method: str, epsilon: float, *, checked: bool = True) -> Tensor:
    """K for ``method``: ``qr``, ``cholesky`` or ``soft`` (the only one that reads ``epsilon``).

    The gradient of ``qr`` and ``cholesky`` is right for functions of ``K K^T`` alone, as all here are.
    ``checked`` as for :func:`cholesky_qr2`.
    """
    with no_autocast(B):
        if method == "soft":
            return soft_factor(B, epsilon)
        K: Tensor = _Span.apply(B, method, checked)  # type: ignore[no-untyped-call]
        return K


class _Span(torch.autograd.Function):
    """An orthonormal K of ``span(B)``, with the gradient of the span: ``(I - K K^T) G R^-T`` for B = K R.

    That of a QR has terms besides for how K turns within the span, which change nothing; left out, the
    backward pass is three thin products.
    """

    @staticmethod
    def forward(ctx: Any, B: Tensor, method: str, checked: bool) -> Tensor:
        K, R = cholesky_qr2(B, checked=checked) if method == "cholesky" else torch.linalg.qr(B)
        ctx.save_for_backward(K, R)
        return K

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        K, R = ctx.saved_tensors
        with no_autocast(K):
            minus = torch.addmm if K.dim() == 2 else torch.baddbmm
            across = minus(grads[0], K, K.mT @ grads[0], alpha=-1)
            return torch.linalg.solve_triangular(R.mT, across, upper=False, left=False), None, None


def cholesky_qr2(B: Tensor, *, checked: bool = True) -> tuple[Tensor, Tensor]:
    """B = QR by two rounds of ``B R^-1`` with ``R^T R = B^T B``; by Householder QR where that is not exact.

    Matrix products and small triangular solves, which a GPU is quick at, against a QR that it does column by
    column. In float32 the rounds are exact to a few roundings up to a condition of about 1e3 (B is kept near
    orthonormal); beyond that, or where a Cholesky fails, the whole batch goes through QR. No gradient.

    Where it is not ``checked``, nothing waits for the device: a round with a shifted ``B^T B`` comes first
    (Fukaya et al. 2020), which is exact up to a condition of about 1e5, and beyond all is NaN.
    """
    Q, failed = B, torch.zeros((), dtype=torch.bool, device=B.device)
    R = identity = torch.eye(B.shape[-1], dtype=B.dtype, device=B.device)
    bound = orthonormal_bound(B.shape[-2:], torch.finfo(B.dtype).eps)
    for number in range(2 if checked else 3):
        gram = Q.mT @ Q
        if not checked and number == 0:
            gram = gram + bound * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * identity
        L, info = torch.linalg.cholesky_ex(gram)
        failed = failed | (info != 0).any()
        Q = torch.linalg.solve_triangular(L.mT, Q, upper=True, left=False)
        R = L.mT @ R
    exact = ~failed & (torch.linalg.matrix_norm(Q.mT @ Q - identity).amax() <= bound)
    if not checked:
        return torch.where(exact, Q, torch.nan), R
    if not bool(exact):  # one look at the device for the whole batch
        Q, R = torch.linalg.qr(B)
    return Q, R


def soft_factor(B: Tensor, epsilon: float) -> Tensor:
    """K with ``K K^T = B (B^T B + eps I)^-1 B^T``: a principal direction s of B counts s^2 / (s^2 + eps)."""
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
