"""A difference that is added where the model is still unlike it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramerge.merge.methods.add_difference import first_at_zero
from paramerge.merge.methods.method import Draws, Method
from paramerge.merge.methods.parameters import Strength

if TYPE_CHECKING:
    import torch


def train_difference(models: list[torch.Tensor], draws: Draws, *, strength: Strength = 1.0) -> torch.Tensor:
    """Train difference: ``a + 1.8 s |b - a| / (|b - a| + |b - c|) (b - c)``, element by element."""
    a, b, c = models
    difference = b - c
    distance = b.sub_(a).abs_()
    whole = difference.abs().add_(distance)
    whole.masked_fill_(whole == 0, 1)  # b = a and b = c: there is nothing to add
    return a.add_(difference.mul_(distance).div_(whole), alpha=1.8 * strength)


TRAIN_DIFFERENCE = Method(
    "train-difference",
    train_difference,
    "elements",
    (3, 3),
    "trainDifference of hako-mikan's SuperMerger",
    first_at_zero,
    one_sided=True,
)
