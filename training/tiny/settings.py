"""The settings of a run of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paramerge.training.tiny.scenes import SceneMix

__all__ = ["PARTS", "RATES", "SMOKE", "Settings"]

PARTS = {"autoencoder": 0.25, "contrastive": 0.08, "text-to-image": 0.67}
"""The parts that are trained, in order, and each one's share of the time."""

RATES = {"autoencoder": 1e-3, "contrastive": 5e-4, "text-to-image": 5e-4}
"""The learning rate of each part."""

_STEPS = {"autoencoder": 20_000, "contrastive": 10_000, "text-to-image": 40_000}


@dataclass(frozen=True, slots=True)
class Settings:
    """The same settings, versions and kind of machine give the same weights."""

    subjects: int = 96
    size: str = "cpu"
    """A name of :data:`paramerge.training.tiny.models.SIZES`."""
    seed: int = 0
    steps: Mapping[str, int] = field(default_factory=lambda: dict(_STEPS))
    """The steps of each part."""
    cooldown: float = 0.25
    """The share of each part's budget in which its learning rate falls to nothing."""
    bf16: bool = False
    """Compute the autoencoder in bfloat16 where that is quicker; its weights stay float32."""
    batch: int = 32
    """Scenes a step; a quarter for the autoencoder, whose pictures are larger than latents."""
    mix: SceneMix = field(default_factory=SceneMix)
    """Shares of scenes with two subjects and a white background."""
    scenes: int = 8000
    """Scenes drawn at random for the text-to-image part, besides the plain ones."""
    sampling_steps: int = 25
    guidance: float = 3.0
    measured: int = 256
    """The most pictures that a measurement takes."""
    drawn: bool = False
    """Drawn polygons in place of emoji: no network is needed."""


SMOKE = Settings(
    subjects=14,
    size="smoke",
    steps=dict.fromkeys(PARTS, 12),
    batch=8,
    scenes=24,
    sampling_steps=4,
    measured=12,
    drawn=True,
)
"""Every stage in seconds: its pictures show nothing."""
