"""A PaRa merged into a weight, in such a way that it can be taken back exactly.

A projection cannot be inverted, so the removed part is kept: ``Q^T W`` and ``Q``, r (d + k) numbers. Adding
it back rounds once more, which changes a few elements (where the reduced weight is in another binade than the
weight was, and at ties); these few are known at once and kept, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paramerge.errors import NonFiniteError

_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}


@dataclass(frozen=True)
class Removal:
    """``W - up @ seen``, and the numbers that give ``W`` back to the bit.

    ``up`` (d, m) and ``seen`` (m, k) in the dtype they were computed in; ``places`` are the flat indices that
    rounding would get wrong, and ``corrections`` the numbers to add there.
    """

    names: tuple[str, ...]
    up: Tensor
    seen: Tensor
    places: Tensor
    corrections: Tensor

    @torch.no_grad()
    def restore(self, weight: Tensor) -> None:
        """Add the removed part back, in place; other changes made since, such as a LoRA's, stay."""
        up, seen = self.up.to(weight.device), self.seen.to(weight.device)
        restored = torch.addmm(weight.flatten(1).to(up.dtype), up, seen).to(weight.dtype).flatten()
        places = self.places.to(weight.device)
        corrected = restored[places].to(up.dtype) + self.corrections.to(weight.device)
        restored[places] = corrected.to(weight.dtype)
        weight.copy_(restored.view(weight.shape))


@torch.no_grad()
def remove(weight: Tensor, K: Tensor, strength: float, names: tuple[str, ...], where: str) -> Removal:
    """Change ``weight`` (d, ...) in place to ``W - s K K^T W``: computed in a wider dtype, rounded once.

    Raises
    ------
    NonFiniteError
        The result would hold NaN or Inf; the weight is then as it was.
    """
    wide = K.dtype if weight.device.type == "mps" else _WIDER.get(weight.dtype, torch.float64)
    before = weight.flatten(1).to(wide)
    basis = K.to(weight.device, wide)
    up, seen = strength * basis, basis.mT @ before
    reduced = torch.addmm(before, up, seen, alpha=-1).to(weight.dtype)
    if not bool(torch.isfinite(reduced).all()):
        raise NonFiniteError(
            f"merging {', '.join(names)} gives NaN or Inf",
            where=where,
            hint="the adapter or the weight is damaged: look at where it was trained or saved",
        )
    back = torch.addmm(reduced.to(wide), up, seen).to(weight.dtype).to(wide)
    wrong = (before - back).flatten()
    places = wrong.nonzero().flatten()
    weight.copy_(reduced.view(weight.shape))
    return Removal(names, up, seen, places, wrong[places])
