"""DARE: drop at random and rescale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramerge.merge.methods.differences import added, first_where_nothing_is_added, kept_at_random
from paramerge.merge.methods.method import Draws, Method
from paramerge.merge.methods.parameters import Each, RandomShare, Rescale, Seed, Signs, Strength

if TYPE_CHECKING:
    import torch


def dare(
    models: list[torch.Tensor],
    draws: Draws,
    *,
    weights: Each = (),
    density: RandomShare = 0.5,
    strength: Strength = 1.0,
    signs: Signs = "all",
    rescale: Rescale = True,
    seed: Seed = 0,
) -> torch.Tensor:
    """DARE: ``m0 + s sum w_i k_i (m_i - m0) / density``, where each ``k_i`` is 1 by chance, else 0.

    With ``signs`` "elect" the differences that stay are merged as by ties.
    """

    def dropped(difference: torch.Tensor, model: int) -> torch.Tensor:
        return kept_at_random(difference, density, draws, seed, model, rescale)

    return added(models, dropped, weights, strength, signs)


DARE = Method(
    "dare",
    dare,
    "elements",
    (2, None),
    "Yu et al. 2023, arXiv:2311.03099",
    first_where_nothing_is_added,
)
