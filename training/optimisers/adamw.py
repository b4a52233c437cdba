"""AdamW (Loshchilov and Hutter 2019), torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paramerge.training.optimisers.record import OptimiserRecord

if TYPE_CHECKING:
    import torch

    from paramerge.training.config import TrainConfig

__all__ = ["ADAMW"]


def _make(groups: Sequence[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    import torch

    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(list(groups), betas=betas, eps=config.adam_epsilon)


ADAMW = OptimiserRecord("adamw", _make)
