"""The loss: the UNet's error in the noise that was added, weighted by min-SNR, with prior preservation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paramerge.errors import UsageError
from paramerge.training.batches import Batch
from paramerge.training.config import PREDICTIONS, TrainConfig
from paramerge.training.texts import Prompts

__all__ = ["loss_of", "noise_schedule", "snr_weights"]


def noise_schedule(pipeline: Any) -> Any:
    """The schedule that the model was trained with, to add noise by.

    Raises
    ------
    UsageError
        The model predicts neither the noise nor the velocity.
    """
    from diffusers import DDPMScheduler

    kind = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise UsageError(
            "the trainer has no loss for this model's kind of prediction",
            where="prediction_type",
            expected=" or ".join(PREDICTIONS),
            found=kind,
            hint="if the model's configuration is wrong, give prediction_type",
        )
    return DDPMScheduler.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]


def loss_of(
    unet: Any, batch: Batch, prompts: Prompts, schedule: Any, config: TrainConfig, dtype: Any
) -> Tensor:
    """The mean over the subject's slots, plus ``prior_weight`` times that over the class's (float32).

    ``prompts`` has an entry for each slot.
    """
    device = prompts.states.device
    pinned = device.type == "cuda"  # so that nothing waits for the copies
    latents, noise, times, ids = (
        (value.pin_memory() if pinned else value).to(device, non_blocking=True)
        for value in (batch.latents, batch.noise, batch.timesteps, batch.time_ids)
    )
    noisy = schedule.add_noise(latents, noise, times)
    extra: dict[str, Any] = {}
    if prompts.pooled is not None:
        extra["added_cond_kwargs"] = {"text_embeds": prompts.pooled.to(dtype), "time_ids": ids.to(dtype)}
    found = unet(noisy.to(dtype), times, encoder_hidden_states=prompts.states.to(dtype), **extra).sample
    kind = schedule.config.prediction_type
    target = schedule.get_velocity(latents, noise, times) if kind == "v_prediction" else noise
    error = (found.float() - target).square().mean((1, 2, 3))
    if config.min_snr_gamma is not None:
        error = error * snr_weights(schedule, times, config.min_snr_gamma, kind)
    total: Tensor = error[: batch.subjects].mean()
    if batch.subjects < len(error):
        total = total + config.prior_weight * error[batch.subjects :].mean()
    return total


def snr_weights(schedule: Any, times: Tensor, gamma: float, kind: str) -> Tensor:
    """Min-SNR (Hang et al. 2023): ``min(snr, gamma) / snr`` for noise, ``/ (snr + 1)`` for velocity."""
    alphas = schedule.alphas_cumprod.to(times.device)[times].double()
    snr = alphas / (1 - alphas)
    capped = torch.clamp(snr, max=gamma)
    # a schedule of zero terminal SNR has snr 0, where the ratio's limit is 1
    weights = capped / (snr + 1) if kind == "v_prediction" else torch.where(snr > 0, capped / snr, 1.0)
    return weights.float()
