"""The loss of pictures that are not trained on, with the same noise and timesteps each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from paramerge.training.batches import Batch
from paramerge.training.config import TrainConfig
from paramerge.training.prompts import Prompts
from paramerge.training.texts import TextEncoding

__all__ = ["HeldOut", "Loss"]

Loss = Callable[[Batch, Prompts, TrainConfig], torch.Tensor]
"""The loss of a batch, given its texts' embeddings and the settings."""


class HeldOut:
    """The mean squared error over fixed batches, whatever loss is trained with.

    Parameters
    ----------
    loss:
        The loss of a batch, given its texts' embeddings and the settings.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        texts: TextEncoding,
        config: TrainConfig,
        loss: Loss,
    ) -> None:
        self._batches, self._texts, self._loss = batches, texts, loss
        self._plain = replace(config, loss="squared", min_snr_gamma=None, debiased=False, mask="none")

    def __bool__(self) -> bool:
        return bool(self._batches)

    @torch.no_grad()
    def __call__(self) -> float:
        """The loss now; NaN where it is not finite."""
        found = [self._loss(batch, self._texts(batch.texts), self._plain) for batch in self._batches]
        return float(torch.stack(found).double().mean())
