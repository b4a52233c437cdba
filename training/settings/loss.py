"""Settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from paramerge.training.settings.option import finite, option

__all__ = ["PREDICTIONS", "LossSettings"]

PREDICTIONS = ("epsilon", "v_prediction")
"""Kinds of a model's prediction from a noisy picture: its noise, or the velocity between the two."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The prediction that is learnt, and the weights of timesteps."""

    prediction_type: str | None = option(
        None, "What the model predicts; by default what its files say.", PREDICTIONS
    )
    min_snr_gamma: float | None = option(None, "Min-SNR weighting, usually 5.")
    noise_offset: float = option(0.0, "Noise offset, such as 0.05.")

    def check_loss(self) -> None:
        """Refuse settings out of range with a UsageError."""
        finite(self, ("noise_offset",))
        finite(self, ("min_snr_gamma",), positive=True)
