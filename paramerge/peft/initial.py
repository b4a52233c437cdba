"""The start of B: the r columns from which a training begins.

B has orthonormal columns, so its norm is sqrt(r). That norm is a hidden learning rate: the gradient goes with
``1 / ||B||`` and is orthogonal to B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paramerge.errors import NonFiniteError


def initial_basis(W: Tensor, rank: int, init: str, epsilon: float, where: str) -> Tensor:
    """B (d, rank) for a layer of weight ``W`` (d, ...), by :class:`PaRaConfig`'s ``init``; random ones from
    torch's global generator.

    Raises
    ------
    NonFiniteError
        ``W`` holds NaN or Inf (only ``least-energy`` looks).
    """
    if init == "least-energy":
        return least_energy_directions(W, rank, where)
    dtype = torch.promote_types(W.dtype, torch.float32)
    random = torch.randn(W.shape[0], rank, dtype=dtype)  # on the CPU: the same numbers for every device
    Q: Tensor = torch.linalg.qr(random)[0].to(W.device)
    # a soft start's directions count epsilon^2 / (epsilon^2 + epsilon), about epsilon
    return Q * epsilon if init == "soft" else Q


def least_energy_directions(W: Tensor, rank: int, where: str = "W") -> Tensor:
    """The ``rank`` left singular vectors of ``W`` (flattened to (d, k)) with the least singular values.

    Removing them changes the layer least of all choices, so the training starts next to the model. A tall
    weight has d - k directions that it does not write to at all; these come first.

    Returns (d, rank), orthonormal, float32 (float64 for a float64 weight), without gradient. They are
    eigenvectors of ``W W^T``, which resolves energies down to about 3e-4 of the largest in float32: below
    that all directions are as good.

    Raises
    ------
    NonFiniteError
        ``W`` holds NaN or Inf.
    """
    flat = W.detach().flatten(1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    if not bool(torch.isfinite(flat).all()):
        raise NonFiniteError("a weight holds NaN or Inf", where=where, hint="the base model is damaged")
    with torch.autocast(W.device.type, enabled=False):
        _, vectors = torch.linalg.eigh(flat @ flat.mT)
    least: Tensor = vectors[:, :rank].contiguous()
    return least
