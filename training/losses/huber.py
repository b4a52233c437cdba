"""The pseudo-Huber loss: squared near 0, linear far away, so that single pictures pull less."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from paramerge.training.settings.loss import LossSettings

__all__ = ["huber"]


def huber(error: Tensor, settings: LossSettings) -> Tensor:
    """``2 c (sqrt(e^2 + c^2) - c)``, which is ``e^2`` to first order; written without its cancellation."""
    c = settings.huber_c
    squares = error.square()
    return 2 * c * squares / ((squares + c * c).sqrt() + c)
