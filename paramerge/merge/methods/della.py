"""DELLA: drop at random, the smaller the likelier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np

from paramerge.errors import UsageError
from paramerge.merge.methods.differences import added, first_where_nothing_is_added, kept_at_random
from paramerge.merge.methods.method import Draws, Method
from paramerge.merge.methods.parameters import Each, RandomShare, Rescale, Seed, Signs, Strength, Within
from paramerge.wording import option

if TYPE_CHECKING:
    import torch

Spread = Annotated[float, Within(0, 1, "how far the chances of the largest and the smallest are apart")]


def della(
    models: list[torch.Tensor],
    draws: Draws,
    *,
    weights: Each = (),
    density: RandomShare = 0.5,
    epsilon: Spread = 0.2,
    strength: Strength = 1.0,
    signs: Signs = "elect",
    rescale: Rescale = True,
    seed: Seed = 0,
) -> torch.Tensor:
    """DELLA: as DARE, with chances from ``density - epsilon / 2`` to ``density + epsilon / 2`` by magnitude.

    Each row's differences are ranked by magnitude (a vector is one row), and the chance rises evenly with the
    rank. A number that stays is divided by its own chance.
    """
    import torch

    def dropped(difference: torch.Tensor, model: int) -> torch.Tensor:
        rows = difference.view(1, -1) if difference.shape[1] == 1 else difference
        last = rows.shape[1] - 1
        rise = torch.arange(last + 1, dtype=rows.dtype) / last if last else torch.tensor([0.5])
        by_rank = (density - epsilon / 2 + epsilon * rise).to(rows.dtype)
        order = torch.from_numpy(_order(rows.abs().numpy()))
        chances = torch.empty_like(rows).scatter_(1, order, by_rank.expand_as(rows))
        return kept_at_random(difference, chances.view(difference.shape), draws, seed, model, rescale)

    return added(models, dropped, weights, strength, signs)


def _order(magnitudes: np.ndarray) -> np.ndarray:
    """The places of each row's elements, the smallest first, int64; of equal ones the earlier first."""
    if magnitudes.dtype != np.float32:
        return magnitudes.argsort(axis=1, kind="stable")
    # the bits of numbers from 0 on are in their order: with the place below them, all keys differ
    halves = np.empty((*magnitudes.shape, 2), "<i4")
    halves[..., 0] = np.arange(magnitudes.shape[1])
    halves[..., 1] = magnitudes.view(np.int32)
    keys = halves.view("<i8")[..., 0]
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return keys


def _check(*, density: float, epsilon: float, **_: object) -> None:
    if not 0 < density - epsilon / 2 <= density + epsilon / 2 <= 1:
        raise UsageError(
            "some differences would have no chance, or more than certainty",
            where=option("epsilon"),
            expected=f"at most {2 * min(density, 1 - density):g} with a density of {density:g}",
            found=f"{epsilon:g}",
        )


DELLA = Method(
    "della",
    della,
    "rows",
    (2, None),
    "Deep et al. 2024, arXiv:2406.11617",
    first_where_nothing_is_added,
    check=_check,
)
