"""What a PaRa does to a layer's output: ``y - s K K^T (y - b)``, with one addmm or two 1x1 convolutions.

``W - s K K^T W`` applied to an input is this on the output ``y = W x + b`` less its bias, at the cost of two
thin products. Computed in float32 or better whatever autocast says (in bfloat16 3e-3 of what should go leaks
back), and rounded once, to the dtype of ``y``.

For the backward pass only the result, K and the r coordinates of each output are kept: the result is mostly
kept by what comes next anyway, and the output before is ``y - b = (result - b) + s K t``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from paramerge.peft.bases import no_autocast

__all__ = ["project_out", "project_out_channels"]


def project_out(y: Tensor, K: Tensor, bias: Tensor | None, strength: float) -> Tensor:
    """``y - s K K^T (y - b)``.

    Parameters
    ----------
    y:
        A linear layer's output (..., d).
    K:
        (d, r), float32 or float64.
    bias:
        (d,), the bias that is in ``y``, or None.
    """
    flat = y.reshape(-1, y.shape[-1])
    return _project(flat, K, bias, strength).reshape(y.shape)


def project_out_channels(y: Tensor, K: Tensor, bias: Tensor | None, strength: float) -> Tensor:
    """As :func:`project_out` for a convolution's output (n, d, h, w) or (d, h, w)."""
    if y.dim() == 3:
        return _project(y[None], K, bias, strength)[0]
    return _project(y, K, bias, strength)


def _project(y: Tensor, K: Tensor, bias: Tensor | None, strength: float) -> Tensor:
    result: Tensor = _Project.apply(y, K, bias, strength)  # type: ignore[no-untyped-call]
    return result


class _Project(torch.autograd.Function):
    """On (n, d) by matrix products, on (n, d, h, w) by 1x1 convolutions."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, K: Tensor, bias: Tensor | None, strength: float) -> Tensor:
        with no_autocast(y):
            wide = y.to(K.dtype)
            t = _coordinates(wide, K)
            if bias is not None:
                offset = bias.to(K.dtype) @ K
                t = t - (offset if y.dim() == 2 else offset[:, None, None])
            result = _subtract(wide, t, K, strength).to(y.dtype)
        ctx.save_for_backward(result, K, t, bias)
        ctx.strength = strength
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        result, K, t, bias = ctx.saved_tensors
        s: float = ctx.strength
        grad = grads[0]
        for_y, for_K, for_bias, _ = ctx.needs_input_grad
        grad_y = grad_K = grad_bias = None
        with no_autocast(grad):
            wide = grad.to(K.dtype)
            u = _coordinates(wide, K)
            if for_y:
                grad_y = _subtract(wide, u, K, s).to(result.dtype)
            if for_K:
                # -s ((y - b) u^T + g t^T), summed over outputs, with y - b = (result - b) + s K t
                total = _outer(result.to(K.dtype), u) + s * (K @ _outer(t, u)) + _outer(wide, t)
                if bias is not None:
                    total = total - torch.outer(bias.to(K.dtype), _summed(u))
                grad_K = -s * total
            if for_bias and bias is not None:
                grad_bias = (s * (K @ _summed(u))).to(bias.dtype)
        return grad_y, grad_K, grad_bias, None


def _coordinates(y: Tensor, K: Tensor) -> Tensor:
    """``K^T y``: (n, r) or (n, r, h, w)."""
    return y @ K if y.dim() == 2 else functional.conv2d(y, K.mT[:, :, None, None])


def _subtract(y: Tensor, t: Tensor, K: Tensor, strength: float) -> Tensor:
    """``y - s K t``."""
    if y.dim() == 2:
        return torch.addmm(y, t, K.mT, alpha=-strength)
    return torch.sub(y, functional.conv2d(t, K[:, :, None, None]), alpha=strength)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """The sum of ``a b^T`` over all outputs, for a (n, p) or (n, p, h, w) and b likewise of q: (p, q)."""
    if a.dim() == 2:
        return a.mT @ b
    # the gradient of a 1x1 convolution's weight (q, p, 1, 1), input a, output gradient b
    grad: Tensor = conv2d_weight(a, (b.shape[1], a.shape[1], 1, 1), b)  # type: ignore[no-untyped-call]
    return grad[:, :, 0, 0].mT


def _summed(u: Tensor) -> Tensor:
    return u.sum(0) if u.dim() == 2 else u.sum((0, 2, 3))
