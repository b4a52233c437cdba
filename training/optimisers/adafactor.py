"""Adafactor (Shazeer and Stern 2018), by transformers: a matrix of squares kept as a row and a column.

Its rate is the configuration's, neither relative to the step nor to the parameters' size: PaRa's B has none
that means anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paramerge.training.optimisers.record import OptimiserRecord

if TYPE_CHECKING:
    import torch

    from paramerge.training.config import TrainConfig

__all__ = ["ADAFACTOR"]


def _make(groups: Sequence[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    from transformers import optimization

    library: Any = optimization
    made: torch.optim.Optimizer = library.Adafactor(
        list(groups), lr=config.rate, relative_step=False, scale_parameter=False, warmup_init=False
    )
    return made


ADAFACTOR = OptimiserRecord("adafactor", _make, module="transformers", package="transformers")
