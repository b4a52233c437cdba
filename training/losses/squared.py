"""The squared error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from paramerge.training.settings.loss import LossSettings

__all__ = ["squared"]


def squared(error: Tensor, settings: LossSettings) -> Tensor:
    """``e^2``."""
    return error.square()
