"""Settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from paramerge.errors import UsageError
from paramerge.training.losses import LOSSES
from paramerge.training.settings.option import finite, option, wrong

__all__ = ["PREDICTIONS", "LossSettings"]

PREDICTIONS = ("epsilon", "v_prediction")
"""Kinds of a model's prediction from a noisy picture: its noise, or the velocity between the two."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The prediction that is learnt, and the weights of timesteps."""

    prediction_type: str | None = option(
        None, "What the model predicts; by default what its files say.", PREDICTIONS
    )
    loss: str = option("squared", "What an error counts.", tuple(LOSSES))
    huber_c: float = option(0.1, "With loss huber: the error where it turns from squared to linear.")
    min_snr_gamma: float | None = option(None, "Min-SNR weighting, usually 5.")
    debiased: bool = option(False, "Debiased estimation's weights of timesteps.")
    noise_offset: float = option(0.0, "Noise offset, such as 0.05.")
    mask: str = option(
        "none",
        "Where the loss counts: white in NAME-masklabel.png beside each picture, or its opaque parts.",
        ("none", "files", "alpha"),
    )
    mask_floor: float = option(0.0, "With a mask: the weight where it is black.")

    flow_weighting: str = option(
        "logit_normal",
        "Flow matching: how times are drawn and weighted, by diffusers' schemes.",
        ("none", "logit_normal", "mode", "cosmap", "sigma_sqrt"),
    )
    embedded_guidance: float = option(1.0, "FLUX.1-dev: the guidance that the model is told in training.")

    def check_loss(self) -> None:
        """Refuse settings out of range with a UsageError."""
        finite(self, ("noise_offset", "embedded_guidance"))
        finite(self, ("min_snr_gamma", "huber_c"), positive=True)
        if not 0 <= self.mask_floor < 1:
            raise wrong("mask_floor", "0 to below 1", self.mask_floor)
        if self.debiased and self.min_snr_gamma is not None:
            raise UsageError(
                "two kinds of weights of timesteps were given",
                where="debiased",
                expected="debiased or min_snr_gamma",
                found=f"both, with {self.min_snr_gamma}",
            )
