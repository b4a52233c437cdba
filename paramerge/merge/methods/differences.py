"""The common part of methods on differences to a first model: the choice of differences, and their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from paramerge.merge.methods.method import Draws

if TYPE_CHECKING:
    import torch


def first_where_nothing_is_added(*, weights: tuple[float, ...], strength: float, **_: object) -> int | None:
    """The first model where the strength, or every weight, is 0."""
    return 0 if strength == 0 or not any(weights) else None


def added(
    models: list[torch.Tensor],
    keep: Callable[[torch.Tensor, int], torch.Tensor],
    weights: Sequence[float],
    strength: float,
    signs: str,
) -> torch.Tensor:
    """``m0 + s`` times the sum of the differences that ``keep`` left of each model, or the elected mean."""
    first, *others = models
    kept = [keep(other.sub_(first), index) for index, other in enumerate(others, 1)]
    return first.add_(elected(kept, weights) if signs == "elect" else summed(kept, weights), alpha=strength)


def summed(differences: list[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """``sum w_i d_i``."""
    total = differences[0].mul_(weights[0])
    for difference, weight in zip(differences[1:], weights[1:], strict=True):
        total.add_(difference, alpha=weight)
    return total


def elected(differences: list[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of the differences that have the sign of their weighted sum, element by element."""
    import torch

    if len(differences) == 1:  # by itself it has the sign of most, and is its own mean
        return differences[0].mul_((weights[0] > 0) - (weights[0] < 0))
    weighted = [difference.mul_(weight) for difference, weight in zip(differences, weights, strict=True)]
    sign = weighted[0].clone()
    for difference in weighted[1:]:
        sign += difference
    sign.sign_()
    total = torch.zeros_like(sign)
    shares = torch.zeros_like(sign)
    for difference, weight in zip(weighted, weights, strict=True):
        agrees = (difference * sign > 0).to(sign.dtype)
        shares.add_(agrees, alpha=abs(weight))
        total.addcmul_(difference, agrees)
    return total.div_(shares.masked_fill_(shares == 0, 1))


def kept_at_random(
    difference: torch.Tensor,
    probabilities: float | torch.Tensor,
    draws: Draws,
    seed: int,
    model: int,
    rescale: bool,
) -> torch.Tensor:
    """Each element with its probability, divided by it where ``rescale``, so that the mean stays; else 0."""
    import torch

    uniform = torch.from_numpy(draws.uniform(seed, model, difference.numel())).view(difference.shape)
    difference.mul_(
        uniform.lt_(probabilities)
    )  # 1 or 0 in place: to multiply by bools takes six times as long
    if rescale:
        difference.div_(probabilities)
    return difference
