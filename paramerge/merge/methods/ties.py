"""TIES: trim, elect the sign, merge the differences that agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramerge.merge.methods.differences import added, first_where_nothing_is_added
from paramerge.merge.methods.method import Cuts, Method
from paramerge.merge.methods.parameters import Density, Each, Strength

if TYPE_CHECKING:
    import torch


def ties(
    models: list[torch.Tensor],
    cuts: Cuts,
    *,
    weights: Each = (),
    density: Density = 0.2,
    strength: Strength = 1.0,
) -> torch.Tensor:
    """TIES: ``m0 + s`` times the mean of the largest differences that have the sign of most.

    Of each model's differences to the first the ``density`` largest of a tensor are kept. The sign of their
    weighted sum is elected for each element, and those that have it are averaged by their weights.
    """

    def trimmed(difference: torch.Tensor, model: int) -> torch.Tensor:
        (least,) = cuts[model - 1]
        return difference.mul_(difference.abs().ge_(least))

    return added(models, trimmed, weights, strength, "elect")


TIES = Method(
    "ties",
    ties,
    "cuts",
    (2, None),
    "Yadav et al. 2023, arXiv:2306.01708",
    first_where_nothing_is_added,
    cuts=lambda size, *, density, **_: (round(density * size),),
)
