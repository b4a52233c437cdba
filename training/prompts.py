"""Embeddings of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Prompts", "together"]


@dataclass(frozen=True)
class Prompts:
    """Embeddings of n texts.

    Attributes
    ----------
    states:
        (n, tokens, width).
    pooled:
        (n, width), or None for models without.
    lengths:
        How many tokens of each text count; empty where all do.
    """

    states: Tensor
    pooled: Tensor | None
    lengths: tuple[int, ...] = ()


def together(prompts: Sequence[Prompts], device: Any) -> Prompts:
    """All of ``prompts`` as one batch on ``device``; shorter ones are filled up with zeros."""
    longest = max(each.states.shape[1] for each in prompts)
    states = [
        torch.nn.functional.pad(each.states, (0, 0, 0, longest - each.states.shape[1])) for each in prompts
    ]
    pooled = [each.pooled for each in prompts if each.pooled is not None]
    return Prompts(
        torch.cat(states).to(device, non_blocking=True),
        torch.cat(pooled).to(device, non_blocking=True) if pooled else None,
        tuple(length for each in prompts for length in each.lengths),
    )
