"""Flow matching (Lipman et al. 2023): noisy latents ``(1 - s) x + s e``, and the velocity ``e - x`` to learn.

Times come from the scheduler's own sigmas (with its shift), at places drawn and weighted by diffusers'
functions for Stable Diffusion 3 (Esser et al. 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Flow"]


class Flow:
    """The objective of a ``FlowMatchEulerDiscreteScheduler``, by one of diffusers' schemes of weighting."""

    def __init__(self, scheduler: Any, weighting: str) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        made: Any = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)  # type: ignore[no-untyped-call]
        self._count = int(made.config.num_train_timesteps)
        self._times: Tensor = made.timesteps.float().cpu()
        self._sigmas: Tensor = made.sigmas[: self._count].float().cpu()
        self._weighting = weighting

    def draw(self, chance: torch.Generator) -> Tensor:
        """A place in the schedule, from noise to picture."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        share = compute_density_for_timestep_sampling(
            self._weighting, 1, logit_mean=0.0, logit_std=1.0, mode_scale=1.29, generator=chance
        )[0]
        times: Tensor = (share * self._count).long().clamp(0, self._count - 1)
        return times

    def fixed(self, count: int) -> list[Tensor]:
        """Places in the middle of equal parts."""
        return [torch.tensor(int((i + 0.5) / count * self._count)) for i in range(count)]

    def times(self, places: Tensor) -> Tensor:
        """1000 s, as the models are told."""
        return self._times.to(places.device)[places]

    def noisy(self, latents: Tensor, noise: Tensor, places: Tensor) -> Tensor:
        """``(1 - s) x + s e``."""
        s = self._sigma(places)[:, None, None, None]
        return (1 - s) * latents + s * noise

    def target(self, latents: Tensor, noise: Tensor, places: Tensor) -> Tensor:
        """``e - x``."""
        return noise - latents

    def weights(self, places: Tensor, settings: Any) -> Tensor | None:
        """The scheme's weight of each time; None where it draws unevenly instead."""
        from diffusers.training_utils import compute_loss_weighting_for_sd3

        if self._weighting in ("none", "logit_normal", "mode"):
            return None
        found: Tensor = compute_loss_weighting_for_sd3(self._weighting, self._sigma(places))
        return found

    def _sigma(self, places: Tensor) -> Tensor:
        return self._sigmas.to(places.device)[places]
