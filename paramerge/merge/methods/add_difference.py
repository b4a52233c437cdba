"""One model's learning, added to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramerge.merge.methods.method import Draws, Method
from paramerge.merge.methods.parameters import Strength

if TYPE_CHECKING:
    import torch


def add_difference(models: list[torch.Tensor], draws: Draws, *, strength: Strength = 1.0) -> torch.Tensor:
    """Add difference: ``a + s (b - c)`` of three models."""
    a, b, c = models
    # written so that +0 is subtracted where b = c, which leaves a zero in a its sign
    return a.sub_(c.sub_(b), alpha=strength) if strength > 0 else a.sub_(b.sub_(c), alpha=-strength)


def first_at_zero(*, strength: float, **_: object) -> int | None:
    """The first model where the strength is 0."""
    return 0 if strength == 0 else None


ADD_DIFFERENCE = Method(
    "add-difference",
    add_difference,
    "elements",
    (3, 3),
    "AUTOMATIC1111's checkpoint merger",
    first_at_zero,
    one_sided=True,
)
