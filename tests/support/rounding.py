"""How far float32 arithmetic may be off, derived: the same on every processor, as nothing is tuned to one."""

from __future__ import annotations

import torch
from torch import Tensor

U32 = 2.0**-24
"""Half the spacing of float32 at 1: what one rounding may change, relatively."""
U64 = 2.0**-53


def dot_error(terms: int, u: float = U32) -> float:
    """Relative error of a sum of ``terms`` products in any order (Higham, Accuracy and Stability, 3.1)."""
    return terms * u / (1 - terms * u)


def spectral_error(W: Tensor, U: Tensor, s: Tensor, Vh: Tensor, f: Tensor) -> float:
    """How far ``U diag(f) Vh``, from an SVD in float32, may be from the same of the exact SVD of ``W``.

    The SVD that was computed is the exact one of ``W + E`` for orthogonal factors near ``U`` and ``V``, and E
    is measured here, whatever library and processor made it. With the exact ``W = U0 S0 V0^T`` and x, y for
    ``U0^T U`` and ``V0^T V``, ``(x + y)_ij (s_j - s0_i)`` and ``(x - y)_ij (s_j + s0_i)`` are sums and
    differences of entries of ``U0^T E V`` and ``V0^T E^T U``, so an entry of the error is one of E's times a
    divided difference of f, where two singular values are too near for that at most the difference itself.
    Singular values move by no more than E together (Mirsky), and f by no more than they do.

    Parameters
    ----------
    W, U, s, Vh, f:
        (d, k), (d, p), (p,), (p, k) and (p,), p = min(d, k); f is what each direction is multiplied by.

    Returns
    -------
    float
        A bound of the Frobenius norm, with the rounding of the product in float32.
    """
    W, U, s, Vh, f = (value.double() for value in (W.flatten(1), U, s, Vh, f))
    # the nearest orthonormal factors, and what is lost on the way to them
    polar = [torch.linalg.svd(factor, full_matrices=False) for factor in (U, Vh)]
    U0, V0 = (left @ right for left, _, right in polar)
    skew = sum(float((scale - 1).abs().max()) for _, scale, _ in polar)
    E = float(torch.linalg.norm((U0 * s) @ V0 - W))
    exact = torch.linalg.svdvals(W)
    gaps = (s[None, :] - exact[:, None]).abs()
    apart = (f[None, :] - f[:, None]).abs()
    near = gaps <= E
    steepest = float((apart / gaps.clamp_min(E)).masked_fill(near, 0).max()) if E else 0.0
    steepest = max(
        steepest, float((f.abs()[None, :] + f.abs()[:, None]).div(s[None, :] + exact[:, None]).max())
    )
    mixed = float(apart.masked_fill(~near, 0).norm())
    product = dot_error(len(f)) * float(f.abs().sum())
    return (1 + 2**0.5 * steepest) * E + mixed + skew * float(f.norm()) + product


def forward_error(model: torch.nn.Module, u: float = U32) -> float:
    """Relative error of a forward pass, as of one sum over the inputs of all layers one after the other.

    To first order the errors of layers add up, each that of a sum over its inputs, as long as the layers
    between enlarge none: norms, residuals and bounded activations see to it.
    """
    values = [*model.named_parameters(), *model.named_buffers()]
    weights = [value for name, value in values if name.endswith("weight") and value.dim() > 1]
    return dot_error(sum(weight[0].numel() for weight in weights), u)


SSIM_ERROR = 8 * dot_error(11**2, U64) / 0.01**2
"""Absolute error of an SSIM in float64: its means and variances are sums over a window of 11 x 11 of numbers
up to 1, and the least that it divides by is 0.01^2."""
