"""The interface of every optimiser to the trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from paramerge.training.config import TrainConfig

__all__ = ["OptimiserRecord"]


@dataclass(frozen=True)
class OptimiserRecord:
    """One optimiser.

    Attributes
    ----------
    name:
        The setting's value.
    make:
        The optimiser of torch's parameter groups (with ``params``, ``lr`` and ``weight_decay`` each), by the
        configuration's betas and epsilon.
    module, package:
        What is imported, and what pip calls it, where it is not torch itself.
    rate:
        The learning rate where none is given; None for the method's.
    several_rates:
        Whether groups may have different rates.
    averages:
        Whether it saves an average of the parameters by itself: it has ``eval`` and ``train`` to go there and
        back.
    moving:
        The numbers in a group that change from step to step.
    """

    name: str
    make: Callable[[Sequence[dict[str, Any]], TrainConfig], torch.optim.Optimizer]
    module: str = "torch"
    package: str = "torch"
    rate: float | None = None
    several_rates: bool = True
    averages: bool = False
    moving: tuple[str, ...] = ()
