"""The loss: how well the UNet tells what noise was added, weighted by min-SNR, with prior preservation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paramerge.training.config import TrainConfig
from paramerge.training.examples import Batch, Prompts

__all__ = ["loss_of", "noise_schedule", "snr_weights"]


def noise_schedule(pipeline: Any) -> Any:
    """The schedule that the model was trained with, to add noise by."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]


def loss_of(
    unet: Any, batch: Batch, prompts: Prompts, schedule: Any, config: TrainConfig, dtype: Any
) -> Tensor:
    """The mean over the subject's slots, plus ``prior_weight`` times that over the class's (float32)."""
    device = prompts.states.device
    latents, noise = batch.latents.to(device), batch.noise.to(device)
    times, which = batch.timesteps.to(device), batch.prompts.to(device)
    noisy = schedule.add_noise(latents, noise, times)
    extra: dict[str, Any] = {}
    if prompts.pooled is not None:
        ids = batch.time_ids.to(device, dtype)
        extra["added_cond_kwargs"] = {"text_embeds": prompts.pooled[which].to(dtype), "time_ids": ids}
    states = prompts.states[which].to(dtype)
    found = unet(noisy.to(dtype), times, encoder_hidden_states=states, **extra).sample
    kind = schedule.config.prediction_type
    target = schedule.get_velocity(latents, noise, times) if kind == "v_prediction" else noise
    error = (found.float() - target).square().mean((1, 2, 3))
    if config.min_snr_gamma is not None:
        error = error * snr_weights(schedule, times, config.min_snr_gamma, kind)
    prior = which == 1
    total: Tensor = error[~prior].mean()
    if bool((batch.prompts == 1).any()):
        total = total + config.prior_weight * error[prior].mean()
    return total


def snr_weights(schedule: Any, times: Tensor, gamma: float, kind: str) -> Tensor:
    """Min-SNR (Hang et al. 2023): ``min(snr, gamma) / snr`` for noise, ``/ (snr + 1)`` for velocity."""
    alphas = schedule.alphas_cumprod.to(times.device)[times].double()
    snr = alphas / (1 - alphas)
    capped = torch.clamp(snr, max=gamma)
    # a schedule of zero terminal SNR has snr 0, where the ratio's limit is 1
    weights = capped / (snr + 1) if kind == "v_prediction" else torch.where(snr > 0, capped / snr, 1.0)
    return weights.float()
