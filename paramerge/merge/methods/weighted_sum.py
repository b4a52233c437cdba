"""Weighted sum of any number of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramerge.merge.methods.method import Draws, Method
from paramerge.merge.methods.parameters import Shares
from paramerge.merge.methods.shares import only_one

if TYPE_CHECKING:
    import torch


def weighted_sum(models: list[torch.Tensor], draws: Draws, *, weights: Shares = ()) -> torch.Tensor:
    """Weighted sum: ``w1 m1 + w2 m2 + ...``, weights 1 / n by default."""
    total: torch.Tensor | None = None
    for model, weight in zip(models, weights, strict=True):
        if weight == 0:
            continue
        model.mul_(weight)  # rounded by itself, so that a sum of two does not depend on their order
        total = model if total is None else total.add_(model)
    return models[0].zero_() if total is None else total


WEIGHTED_SUM = Method(
    "weighted-sum",
    weighted_sum,
    "elements",
    (2, None),
    "AUTOMATIC1111's checkpoint merger, for two; the linear method of mergekit",
    only_one,
)
