"""Settings of what a training writes on the way."""

# ruff: noqa: RUF009  (option makes a field)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paramerge.training.settings.option import at_least, option

__all__ = ["WatchingSettings"]


@dataclass(frozen=True, kw_only=True)
class WatchingSettings:
    """Checkpoints, pictures and trackers."""

    save_every: int = option(100, "Steps between checkpoints; 0 for none but the last.")
    checkpoints_limit: int = option(2, "How many checkpoints are kept, and one to fall back to; 0: all.")
    validation_prompts: tuple[str, ...] = option((), "Prompts that are drawn on the way and at the end.")
    validation_every: int = option(50, "Steps between these pictures, and losses of held_out.")
    validation_steps: int = option(25, "Sampling steps of these pictures.")
    validation_guidance: float = option(7.5, "Guidance of these pictures.")
    validation_seeds: tuple[int, ...] = option((0, 1), "One picture of each prompt for each seed.")
    held_out: Path | None = option(None, "Pictures that are not trained on; their loss is logged.")
    held_out_times: int = option(8, "With held_out: how many timesteps of each picture.")
    tracker: str = option("none", "A tracker of accelerate's as well.", ("none", "tensorboard", "wandb"))

    def check_watching(self) -> None:
        """Refuse settings out of range with a UsageError."""
        at_least(self, 1, ("held_out_times",))
        at_least(self, 0, ("save_every", "checkpoints_limit", "validation_every"))
