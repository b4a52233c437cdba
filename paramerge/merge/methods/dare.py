"""DARE: drop at random and rescale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from paramerge.merge.methods.differences import (
    added,
    elected,
    first_where_nothing_is_added,
    kept_at_random,
    summed,
)
from paramerge.merge.methods.method import Draws, Method
from paramerge.merge.methods.parameters import Choice, Each, Seed, Strength, Switch, Within

if TYPE_CHECKING:
    import torch

RandomShare = Annotated[float, Within(0, 1, "the share of each model's differences that is kept", above=True)]
Signs = Annotated[
    str, Choice(("all", "elect"), "whether differences of either sign are added, or as in ties")
]
Rescale = Annotated[bool, Switch("whether what is kept is divided by the chance it had")]


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

    return added(models, dropped, weights, strength, elected if signs == "elect" else summed)


DARE = Method(
    "dare",
    dare,
    "elements",
    (2, None),
    "Yu et al. 2023, arXiv:2311.03099",
    first_where_nothing_is_added,
)
