"""All settings of a training, as one frozen record; a TOML file and the flags are the same fields."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from paramerge.training.settings.adapter import METHODS, AdapterSettings
from paramerge.training.settings.data import DataSettings
from paramerge.training.settings.loss import PREDICTIONS, LossSettings
from paramerge.training.settings.option import wrong
from paramerge.training.settings.places import PlaceSettings
from paramerge.training.settings.steps import StepSettings
from paramerge.training.settings.watching import WatchingSettings

__all__ = ["METHODS", "PLACES", "PREDICTIONS", "TrainConfig"]

_WATCHING = (
    *("validation_prompts", "validation_every", "validation_steps", "validation_guidance"),
    "held_out_times",
)
_KEEPING = ("output", "save_every", "checkpoints_limit", "tracker", "validation_seeds")
_SHARING = ("batch_size", "accumulation", "gradient_checkpointing")
_FREE = {"steps", *_WATCHING, *_KEEPING, *_SHARING}
"""Settings that may change between a run and its resumption: none changes the computation of a step but the
batch, whose size in all (batch_size * accumulation * processes) is compared by itself."""


PLACES = {"instance_folder", "dataset", "class_folder", "held_out", "vae", "cache"}
"""Settings that say where something is; its content counts, not its place."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    # the fields of the last are listed first
    WatchingSettings,
    StepSettings,
    LossSettings,
    DataSettings,
    AdapterSettings,
    PlaceSettings,
):
    """One run: a model, a folder of pictures of a subject, a method, and how long.

    Names of the fields are the flags' with ``_`` for ``-``. A rank, gamma, init ... counts for the methods
    that have one.

    Raises
    ------
    UsageError
        A setting is out of range, or two do not go together.
    """

    def __post_init__(self) -> None:
        given = (f for f in fields(self) if not (f.default is None and getattr(self, f.name) is None))
        for name, choices in ((f.name, f.metadata["choices"]) for f in given):
            if choices and getattr(self, name) not in choices:
                raise wrong(name, ", ".join(choices), getattr(self, name))
        self.check_places()
        self.check_adapter()
        self.check_data()
        self.check_loss()
        self.check_steps()
        self.check_watching()
        if self.init == "gate" and self.method == "para" and self.gate_steps >= self.steps:
            raise wrong("gate_steps", f"below steps ({self.steps}), to be open at the end", self.gate_steps)
        word = (self.pivotal or self.method == "textual-inversion") and self.dataset is None
        if word and self.placeholder not in self.instance_prompt:
            raise wrong("instance_prompt", f"a prompt with {self.placeholder} in it", self.instance_prompt)
        if self.text_encoder_rate is not None and not self.train_text_encoder:
            raise wrong("text_encoder_rate", "train_text_encoder", "text encoders that are not trained")

        if self.placeholder_rate is not None:
            if not self.pivotal:
                raise wrong("placeholder_rate", "pivotal", "no word that is trained beside an adapter")
            if not self.optimiser_record.several_rates:
                raise wrong(
                    "placeholder_rate", f"none: {self.optimiser} has one rate for all", self.placeholder_rate
                )

    @property
    def word_rate(self) -> float:
        """The learning rate of a word that is trained beside an adapter."""
        if not self.optimiser_record.several_rates:
            return self.rate
        return self.placeholder_rate or METHODS["textual-inversion"]

    @property
    def rate(self) -> float:
        """The learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.optimiser_record.rate or METHODS[self.method]

    def plain(self) -> dict[str, Any]:
        """The fields that are set, as TOML and JSON have them: paths as text, tuples as lists, no None."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: _plain(value) for key, value in values.items()}

    def identity(self) -> str:
        """SHA-256 (hex) of all settings that decide a step's computation, without the data and the files'
        places."""
        places = PLACES | {"model", "device"}
        decisive = {key: value for key, value in self.plain().items() if key not in _FREE | places}
        if self.lr_scheduler not in ("constant", "constant_with_warmup"):
            decisive["steps"] = self.steps  # the course of the rate depends on where it ends
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
