"""The projection of a layer's output, ``y - s K K^T (y - b)``, by two thin matrix products.

``W - s K K^T W`` applied to an input is this on the output ``y = W x + b`` less its bias. Computed in float32
or better also under autocast (in bfloat16 3e-3 of what should go leaks back; a convolution of 1x1, which does
the same, would be of TensorFloat-32 on a GPU), and rounded once, to the dtype of ``y``.

For the backward pass only the result, K and the r coordinates of each output are kept: the result is mostly
kept by the next layer anyway, and the output before is ``y - b = (result - b) + s K t``. Of a frozen
convolution PyTorch would keep the input too, which only a gradient of the weight needs; so such a one is
called within, and its input let go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paramerge.peft.bases import no_autocast

WORTH_LETTING_GO = 2**20
"""Bytes of an input from which on it is let go; below, Python's few calls more cost more than it is."""


def project_out(
    y: Tensor, K: Tensor, bias: Tensor | None, strength: float, *, across_only: bool = False
) -> Tensor:
    """``y - s K K^T (y - b)``.

    Parameters
    ----------
    y:
        A linear layer's output (..., d).
    K:
        (d, r), float32 or float64.
    bias:
        (d,), the bias that is in ``y``, or None.
    across_only:
        The gradient of K may leave out the part in K's span, as :func:`~paramerge.peft.bases.basis_of` does
        not look at that for an orthonormal K: one product less.
    """
    return _project(y, K, bias, strength, False, across_only, None)


def project_out_channels(
    y: Tensor, K: Tensor, bias: Tensor | None, strength: float, *, across_only: bool = False
) -> Tensor:
    """Project (:func:`project_out`) an output (n, d, h, w) or (d, h, w), in its memory format."""
    if y.stride(-3) == 1 and not y.is_contiguous():  # channels last: rows of d, as a linear layer's
        last = _project(y.movedim(-3, -1), K, bias, strength, False, across_only, None)
        return last.movedim(-1, -3)
    return _project(y, K, bias, strength, True, across_only, None)


def can_let_go(layer: nn.Module, x: Tensor) -> bool:
    """Whether :func:`convolve_and_project_out` is for this layer and input: a plain frozen one, a large x."""
    return (
        type(layer) is nn.Conv2d
        and x.numel() * x.element_size() >= WORTH_LETTING_GO
        and x.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # a compiler finds out itself which values need not be kept
        and not (layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad))
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and x.dim() == 4
        and x.is_contiguous()
        # no hook on the call, and none that sets the weight for the call alone
        and "forward" not in vars(layer)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
    )


def convolve_and_project_out(
    x: Tensor, layer: nn.Conv2d, K: Tensor, strength: float, *, across_only: bool = False
) -> Tensor:
    """:func:`project_out_channels` of ``layer(x)``, without keeping x; where :func:`can_let_go` says so."""
    return _project(x, K, layer.bias, strength, True, across_only, layer)


def _project(*arguments: Any) -> Tensor:
    result: Tensor = _Project.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class _Project(torch.autograd.Function):
    """On rows (n, d), or with ``channels`` on columns (n, d, h w): as the memory order has it.

    ``y`` is the output to project, or with ``layer`` the input of this frozen convolution.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        K: Tensor,
        bias: Tensor | None,
        s: float,
        channels: bool,
        across_only: bool,
        layer: nn.Conv2d | None,
    ) -> Tensor:
        ctx.input = (y.shape, y.dtype)
        y = y if layer is None else layer(y)
        with no_autocast(y):
            wide = _matrices(y, K, channels)
            t = _coordinates(wide, K, None if bias is None else bias.to(K.dtype) @ K)
            result = _subtract(wide, t, K, s).view(y.shape).to(y.dtype)
        ctx.save_for_backward(result, K, t, bias, None if layer is None else layer.weight)
        ctx.settings = (s, channels, across_only)
        ctx.convolution = None if layer is None else (layer.stride, layer.padding, layer.dilation)
        return result

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None]:
        result, K, t, bias, weight = ctx.saved_tensors
        s, channels, across_only = ctx.settings
        for_y, for_K, for_bias = ctx.needs_input_grad[:3]
        grad_y = grad_K = grad_bias = None
        with no_autocast(K):
            wide = _matrices(grads[0], K, channels)
            u = _coordinates(wide, K, None)
            if for_y:
                grad_y = _subtract(wide, u, K, s).view(result.shape).to(result.dtype)
                if weight is not None:
                    shape, dtype = ctx.input
                    grad_y = _before(grad_y, weight, shape, ctx.convolution).to(dtype)
            if for_K:
                # -s ((y - b) u^T + g t^T), summed over outputs, with y - b = (result - b) + s K t
                total = _outer(_matrices(result, K, channels), u, wide, t)
                if not across_only:
                    total = torch.addmm(total, K, _outer(t, u), alpha=s)
                if bias is not None:
                    total = torch.addr(total, bias.to(K.dtype), _summed(u), alpha=-1)
                grad_K = total * -s
            if for_bias and bias is not None:
                grad_bias = (s * (K @ _summed(u))).to(bias.dtype)
        return grad_y, grad_K, grad_bias, None, None, None, None


def _before(grad: Tensor, weight: Tensor, shape: torch.Size, settings: tuple[list[int], ...]) -> Tensor:
    """The gradient of a convolution's input of this shape, from that of its output."""
    stride, padding, dilation = settings
    # the operator wants an input where only the shape counts; autocast's weight has the dtype of the gradient
    form, cast = grad.new_empty(shape), weight.to(grad.dtype)
    found: Tensor = torch.ops.aten.convolution_backward.default(
        grad, form, cast, None, stride, padding, dilation, False, [0, 0], 1, (True, False, False)
    )[0]
    return found


def _matrices(y: Tensor, K: Tensor, channels: bool) -> Tensor:
    """``y`` as rows (n, d) or columns (n, d, l), in the dtype of K."""
    wide, d = y.to(K.dtype), K.shape[0]
    return wide.reshape(-1, d, y.shape[-2] * y.shape[-1]) if channels else wide.reshape(-1, d)


def _for_each(matrix: Tensor, of: Tensor) -> Tensor:
    return matrix.expand(of.shape[0], -1, -1)


def _coordinates(y: Tensor, K: Tensor, offset: Tensor | None) -> Tensor:
    """``K^T y - offset``: (n, r) or (n, r, l)."""
    if y.dim() == 2:
        return y @ K if offset is None else torch.addmm(offset, y, K, beta=-1)
    up = _for_each(K.mT, y)
    return torch.bmm(up, y) if offset is None else torch.baddbmm(offset[:, None], up, y, beta=-1)


def _subtract(y: Tensor, t: Tensor, K: Tensor, strength: float) -> Tensor:
    """``y - s K t``."""
    if y.dim() == 2:
        return torch.addmm(y, t, K.mT, alpha=-strength)
    return torch.baddbmm(y, _for_each(K, y), t, alpha=-strength)


def _outer(a: Tensor, b: Tensor, c: Tensor | None = None, d: Tensor | None = None) -> Tensor:
    """The sum of ``a b^T + c d^T`` over all outputs, for a (n, p) or (n, p, l) and b likewise: (p, q)."""
    if a.dim() == 2:
        total = a.mT @ b
        return total if c is None or d is None else torch.addmm(total, c.mT, d)
    parts = torch.bmm(a, b.mT)
    if c is not None and d is not None:
        parts = torch.baddbmm(parts, c, d.mT)
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _summed(u: Tensor) -> Tensor:
    return u.sum(0) if u.dim() == 2 else u.sum((0, 2))
