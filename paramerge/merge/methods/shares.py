"""Weights as the models' shares: their range, and weights that leave one model alone."""

from __future__ import annotations

from collections.abc import Sequence

from paramerge.errors import UsageError
from paramerge.wording import option


def only_one(*, weights: Sequence[float], **_: object) -> int | None:
    """The model whose weight is 1 where all others have 0."""
    at = only_one_counts(weights=weights)
    return at if at is not None and weights[at] == 1 else None


def only_one_counts(*, weights: Sequence[float], **_: object) -> int | None:
    """The model whose weight is not 0 where all others have 0."""
    at = [index for index, weight in enumerate(weights) if weight != 0]
    return at[0] if len(at) == 1 else None


def refuse_negative(*, weights: Sequence[float], **_: object) -> None:
    """Refuse weights that are no shares of a whole."""
    if any(weight < 0 for weight in weights) or sum(weights) <= 0:
        raise UsageError(
            "a weight is negative, or all are 0",
            where=option("weights"),
            expected="numbers from 0 on, not all of them 0",
            found=", ".join(f"{weight:g}" for weight in weights),
        )
