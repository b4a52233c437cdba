"""Schedule-free AdamW (Defazio et al. 2024), by schedulefree: an average of the steps in place of a course of
the rate. What is saved and drawn is that average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paramerge.training.optimisers.record import OptimiserRecord

if TYPE_CHECKING:
    import torch

    from paramerge.training.config import TrainConfig

__all__ = ["SCHEDULE_FREE"]


def _make(groups: Sequence[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    import schedulefree

    library: Any = schedulefree
    betas = (config.adam_beta1, config.adam_beta2)
    made: Any = library.AdamWScheduleFree(list(groups), betas=betas, eps=config.adam_epsilon)
    made.train()
    optimiser: torch.optim.Optimizer = made
    return optimiser


SCHEDULE_FREE = OptimiserRecord(
    "schedule-free",
    _make,
    module="schedulefree",
    package="schedulefree",
    averages=True,
    moving=("k", "lr_max", "weight_sum", "scheduled_lr"),
)
