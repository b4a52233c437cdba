"""Diffusion by DDPM's schedule: models of the noise, or of the velocity between noise and picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paramerge.errors import UsageError
from paramerge.training.settings.loss import PREDICTIONS

__all__ = ["Diffusion", "debiased_weights", "noise_schedule", "snr_weights"]


class Diffusion:
    """The objective of a schedule of diffusers (``DDPMScheduler``)."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule
        self._kind = schedule.config.prediction_type

    def draw(self, chance: torch.Generator) -> Tensor:
        """A timestep, all alike."""
        return torch.randint(int(self.schedule.config.num_train_timesteps), (), generator=chance)

    def fixed(self, count: int) -> list[Tensor]:
        """Timesteps in the middle of equal parts."""
        known = int(self.schedule.config.num_train_timesteps)
        return [torch.tensor(int((i + 0.5) / count * known)) for i in range(count)]

    def times(self, places: Tensor) -> Tensor:
        """The timesteps themselves."""
        return places

    def noisy(self, latents: Tensor, noise: Tensor, places: Tensor) -> Tensor:
        """``sqrt(a) x + sqrt(1 - a) e``."""
        found: Tensor = self.schedule.add_noise(latents, noise, places)
        return found

    def target(self, latents: Tensor, noise: Tensor, places: Tensor) -> Tensor:
        """The noise, or ``sqrt(a) e - sqrt(1 - a) x``."""
        if self._kind == "v_prediction":
            velocity: Tensor = self.schedule.get_velocity(latents, noise, places)
            return velocity
        return noise

    def weights(self, places: Tensor, settings: Any) -> Tensor | None:
        """Min-SNR's or debiased estimation's."""
        if settings.min_snr_gamma is not None:
            return snr_weights(self.schedule, places, settings.min_snr_gamma, self._kind)
        return debiased_weights(self.schedule, places, self._kind) if settings.debiased else None


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
    alphas: Tensor = schedule.alphas_cumprod.to(times.device)[times].double()
    return alphas / (1 - alphas)
