"""Prodigy (Mishchenko and Defazio 2024), by prodigyopt: AdamW that finds the size of its steps by itself.

The learning rate, 1 where none is given, multiplies what it finds; a course or a warm-up of it is allowed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paramerge.training.optimisers.record import OptimiserRecord

if TYPE_CHECKING:
    import torch

    from paramerge.training.config import TrainConfig

__all__ = ["PRODIGY"]


def _make(groups: Sequence[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    import prodigyopt

    library: Any = prodigyopt
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a note
        made: torch.optim.Optimizer = library.Prodigy(
            list(groups),
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            use_bias_correction=True,
            safeguard_warmup=config.lr_warmup_steps > 0,  # so that small first steps do not count too much
        )
    return made


PRODIGY = OptimiserRecord(
    "prodigy",
    _make,
    module="prodigyopt",
    package="prodigyopt",
    rate=1.0,
    several_rates=False,
    moving=("d", "d_max", "d_numerator", "d_denom", "d_hat", "k"),
)
