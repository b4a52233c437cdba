"""Settings of the steps: how many, by which optimiser, and on which device."""

from __future__ import annotations

from dataclasses import dataclass

from paramerge.errors import UsageError
from paramerge.training.optimisers import OPTIMISERS, OptimiserRecord
from paramerge.training.settings.option import at_least, finite, option, wrong

__all__ = ["StepSettings"]

_CONSTANT = ("constant", "constant_with_warmup")


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Batches, rates, the optimiser and the numbers' precision."""

    steps: int = option(200, "Optimiser steps; the paper uses 200 for PaRa.")
    batch_size: int = option(1, "Pictures at once on each device.")
    accumulation: int = option(1, "Batches that make a step.")
    optimiser: str = option("adamw", "The rule by which a step goes down.", tuple(OPTIMISERS))
    learning_rate: float | None = option(None, "By default the method's own; 1 for prodigy.")
    text_encoder_rate: float | None = option(None, "The text encoders' own; by default the learning rate.")
    lr_scheduler: str = option(
        "constant",
        "Course of the learning rate.",
        ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    lr_warmup_steps: int = option(0, "Steps until the learning rate is reached.")
    weight_decay: float = option(1e-2, "The optimiser's, for all but PaRa's B: that one's is always 0.")
    adam_beta1: float = option(0.9, "The optimiser's first beta.")
    adam_beta2: float = option(0.999, "The optimiser's second beta.")
    adam_epsilon: float = option(1e-8, "The optimiser's epsilon.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0 for no clipping.")
    ema_decay: float = option(0.0, "Decay of the average that is saved; 0 for none.")
    mixed_precision: str = option(
        "no", "Dtype of the frozen weights and of autocast.", ("no", "fp16", "bf16")
    )
    quantise: str = option(
        "none", "Frozen linear layers in 8 bits, by torchao: for para and lora.", ("none", "int8", "fp8")
    )
    gradient_checkpointing: bool = option(False, "Less memory for more time.")
    tf32: bool = option(False, "On a GPU: TensorFloat-32 for products of float32; never for PaRa's own.")
    channels_last: bool = option(False, "Convolutions with channels last in memory; for UNets.")
    compile: bool = option(False, "Compile the model by torch.compile.")
    device: str | None = option(None, "cpu or cuda; by default the one that accelerate finds.")
    seed: int = option(0, "All chance comes from this and the step.")

    def check_steps(self) -> None:
        """Refuse settings out of range, and those that do not go together, with a UsageError."""
        at_least(self, 1, ("steps", "batch_size", "accumulation"))
        at_least(self, 0, ("lr_warmup_steps",))
        finite(self, ("weight_decay", "max_grad_norm"))
        finite(self, ("learning_rate", "text_encoder_rate"), positive=True)
        if not 0 <= self.ema_decay < 1:
            raise wrong("ema_decay", "0 to below 1", self.ema_decay)
        record = self.optimiser_record
        if record.averages and self.ema_decay:
            raise _not_together(record, "ema_decay", "0: it saves an average of its own", self.ema_decay)
        if record.averages and self.lr_scheduler not in _CONSTANT:
            expected = f"{' or '.join(_CONSTANT)}: its average takes the place of a course"
            raise _not_together(record, "lr_scheduler", expected, self.lr_scheduler)
        if not record.several_rates and self.text_encoder_rate is not None:
            raise _not_together(
                record, "text_encoder_rate", "none: it has one rate for all", self.text_encoder_rate
            )

    @property
    def optimiser_record(self) -> OptimiserRecord:
        """The optimiser's entry in the list."""
        return OPTIMISERS[self.optimiser]


def _not_together(record: OptimiserRecord, name: str, expected: str, found: object) -> UsageError:
    return UsageError(
        f"{record.name} does not go together with this setting", where=name, expected=expected, found=found
    )
