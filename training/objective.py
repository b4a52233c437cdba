"""The loss: the model's error in the noise that was added, weighted by time and place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paramerge.errors import UsageError
from paramerge.training.batches import Batch
from paramerge.training.config import PREDICTIONS, TrainConfig
from paramerge.training.losses import LOSSES
from paramerge.training.texts import Prompts

__all__ = ["debiased_weights", "fixed_times", "loss_of", "noise_schedule", "snr_weights", "time_drawer"]


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


def time_drawer(schedule: Any) -> Callable[[torch.Generator], Tensor]:
    """Timesteps by chance, all alike."""
    count = int(schedule.config.num_train_timesteps)
    return lambda draw: torch.randint(count, (), generator=draw)


def fixed_times(schedule: Any, count: int) -> list[Tensor]:
    """``count`` timesteps in the middle of as many equal parts."""
    known = int(schedule.config.num_train_timesteps)
    return [torch.tensor(int((i + 0.5) / count * known)) for i in range(count)]


def loss_of(
    unet: Any, batch: Batch, prompts: Prompts, schedule: Any, config: TrainConfig, dtype: Any
) -> Tensor:
    """The mean over the subject's slots, plus ``prior_weight`` times that over the class's (float32).

    ``prompts`` has an entry for each slot. A mask counts as the weights of a mean over the places, so a
    picture whose error is the same everywhere has the same loss under any mask.
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
    error = LOSSES[config.loss](found.float() - target, config)
    error = _mean_of_places(error, batch.mask)
    if config.min_snr_gamma is not None:
        error = error * snr_weights(schedule, times, config.min_snr_gamma, kind)
    if config.debiased:
        error = error * debiased_weights(schedule, times, kind)
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


def snr_weights(schedule: Any, times: Tensor, gamma: float, kind: str) -> Tensor:
    """Min-SNR (Hang et al. 2023): ``min(snr, gamma) / snr`` for noise, ``/ (snr + 1)`` for velocity."""
    snr = _snr(schedule, times)
    capped = torch.clamp(snr, max=gamma)
    # a schedule of zero terminal SNR has snr 0, where the ratio's limit is 1
    weights = capped / (snr + 1) if kind == "v_prediction" else torch.where(snr > 0, capped / snr, 1.0)
    return weights.float()


def debiased_weights(schedule: Any, times: Tensor, kind: str) -> Tensor:
    """Debiased estimation (Yu et al. 2023): ``1 / sqrt(snr)`` for noise, the same of the velocity's error,
    ``sqrt(snr) / (snr + 1)``.

    Of a schedule of zero terminal SNR, where the weight of noise has no bound, the last step counts nothing.
    """
    snr = _snr(schedule, times)
    if kind == "v_prediction":
        return (snr.sqrt() / (snr + 1)).float()
    return torch.where(snr > 0, snr.rsqrt(), 0.0).float()


def _snr(schedule: Any, times: Tensor) -> Tensor:
    alphas = schedule.alphas_cumprod.to(times.device)[times].double()
    return alphas / (1 - alphas)
