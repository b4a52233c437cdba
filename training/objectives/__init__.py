"""Objectives of a model: the noise or velocity of a diffusion, or the velocity of a flow; a file a kind."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Generator, Tensor

__all__ = ["Objective"]


class Objective(Protocol):
    """The noise that is added, and the answer that is asked for."""

    def draw(self, chance: Generator) -> Tensor:
        """The place of a time in the schedule, by chance."""

    def fixed(self, count: int) -> list[Tensor]:
        """``count`` places in the middle of as many equal parts."""

    def times(self, places: Tensor) -> Tensor:
        """The times (n,) that the model is told."""

    def noisy(self, latents: Tensor, noise: Tensor, places: Tensor) -> Tensor:
        """The latents with noise."""

    def target(self, latents: Tensor, noise: Tensor, places: Tensor) -> Tensor:
        """The answer of a perfect model."""

    def weights(self, places: Tensor, settings: Any) -> Tensor | None:
        """The weight of each slot's loss, (n,); None for 1."""
