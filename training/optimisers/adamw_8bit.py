"""AdamW whose moments are stored in 8 bits with a scale for each block (Dettmers et al. 2022), by
bitsandbytes; matrices of fewer than 4,096 numbers keep float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paramerge.training.optimisers.record import OptimiserRecord

if TYPE_CHECKING:
    import torch

    from paramerge.training.config import TrainConfig

__all__ = ["ADAMW_8BIT"]


def _make(groups: Sequence[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    from bitsandbytes import optim

    library: Any = optim
    betas = (config.adam_beta1, config.adam_beta2)
    made: torch.optim.Optimizer = library.AdamW8bit(list(groups), betas=betas, eps=config.adam_epsilon)
    return made


ADAMW_8BIT = OptimiserRecord("adamw-8bit", _make, module="bitsandbytes", package="bitsandbytes")
