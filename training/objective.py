"""The loss: the model's error in what it was asked for, weighted by time and place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from paramerge.training.batches import Batch
from paramerge.training.config import TrainConfig
from paramerge.training.losses import LOSSES
from paramerge.training.models.record import ModelKind
from paramerge.training.models.unet import UNET
from paramerge.training.objectives import Objective
from paramerge.training.prompts import Prompts

__all__ = ["loss_of"]


def loss_of(
    model: Any,
    batch: Batch,
    prompts: Prompts,
    objective: Objective,
    config: TrainConfig,
    dtype: Any,
    kind: ModelKind = UNET,
) -> Tensor:
    """The mean over the subject's slots, plus ``prior_weight`` times that over the class's (float32).

    ``prompts`` has an entry for each slot. A mask counts as the weights of a mean over the places, so a
    picture whose error is the same everywhere has the same loss under any mask.
    """
    device = prompts.states.device
    pinned = device.type == "cuda"  # so that nothing waits for the copies
    latents, noise, places, ids = (
        (value.pin_memory() if pinned else value).to(device, non_blocking=True)
        for value in (batch.latents, batch.noise, batch.timesteps, batch.time_ids)
    )
    noisy = objective.noisy(latents, noise, places)
    found = kind.predict(model, noisy, objective.times(places), prompts, ids, config, dtype)
    error = LOSSES[config.loss](found.float() - objective.target(latents, noise, places), config)
    error = _mean_of_places(error, batch.mask)
    weights = objective.weights(places, config)
    if weights is not None:
        error = error * weights
    parts = []
    if batch.subjects:
        parts.append(error[: batch.subjects].mean())
    if batch.subjects < len(error):
        parts.append(config.prior_weight * error[batch.subjects :].mean())
    total: Tensor = sum(parts[1:], parts[0])
    return total


def _mean_of_places(error: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of (n, c, h, w) over all but the first axis, (n,); weighted where there is a mask."""
    if mask is None:
        return error.mean((1, 2, 3))
    weights = mask.to(error.device, non_blocking=True)
    return (error * weights).mean((1, 2, 3)) / weights.mean((1, 2, 3))
