"""All settings of a training, as one frozen record; a TOML file and the flags are the same fields."""

# ruff: noqa: RUF009  (_option makes a field)

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from paramerge.errors import UsageError

__all__ = ["METHODS", "TrainConfig", "config_from_toml", "config_to_toml"]

METHODS = {
    "para": 1e-3,
    "lora": 1e-4,
    "dora": 1e-4,
    "oft": 1e-4,
    "boft": 1e-4,
    "loha": 1e-4,
    "lokr": 1e-4,
    "krona": 5e-4,
    "svdiff": 1e-3,
    "dreambooth": 5e-6,
    "textual-inversion": 5e-3,
}
"""The methods and the learning rate of each where none is given."""

PREDICTIONS = ("epsilon", "v_prediction")
"""Kinds of a model's prediction from a noisy picture: its noise, or the velocity between the two."""

_WATCHING = ("validation_prompts", "validation_every", "validation_steps", "validation_guidance")
_KEEPING = ("output", "save_every", "checkpoints_limit", "tracker", "validation_seeds")
_SHARING = ("batch_size", "accumulation", "gradient_checkpointing")
_FREE = {"steps", *_WATCHING, *_KEEPING, *_SHARING}
"""Settings that may change between a run and its resumption: none changes the computation of a step but the
batch, whose size in all (batch_size * accumulation * processes) is compared by itself."""


_AT_LEAST_1 = (
    "rank", "steps", "batch_size", "accumulation", "class_images", "placeholder_vectors", "prompt_chunks",
)  # fmt: skip
_AT_LEAST_0 = (
    "save_every", "checkpoints_limit", "validation_every", "lr_warmup_steps", "gate_steps", "keep_tags",
)  # fmt: skip


def _option(default: Any, help_text: str, choices: tuple[str, ...] | None = None) -> Any:
    metadata = {"help": help_text, "choices": choices}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run: a model, a folder of pictures of a subject, a method, and how long.

    Names of the fields are the flags' with ``_`` for ``-``. A rank, gamma, init ... counts for the methods
    that have one.
    """

    model: Path = _option(
        MISSING, "Diffusers folder or single file of SD1.5 or SDXL, or emoji-diffusion, which ships."
    )
    instance_folder: Path = _option(MISSING, "The subject's pictures.")
    instance_prompt: str = _option(
        MISSING, "What they show, such as 'a photo of sks dog'; texts beside the pictures win."
    )
    output: Path = _option(MISSING, "Folder for the adapter, checkpoints, samples and the log.")
    method: str = _option("para", "What is trained.", tuple(METHODS))

    # the trained parameters
    rank: int = _option(4, "Rank of an adapter; the blocks of oft and boft are of this size.")
    alpha: float | None = _option(None, "LoRA's alpha; by default the rank.")
    subset: str = _option("ex-ca", "Which layers of the UNet: a subset of the paper, or 'attention'.")
    train_text_encoder: bool = _option(False, "Train the text encoders' attention, too.")
    gamma: float | None = _option(None, "PaRa's rank boundary, such as 0.025.")
    gamma_on: str = _option("all", "The layers of the rank boundary: 'conv' as in Table 3.", ("all", "conv"))
    orthonormalise: str = _option(
        "auto",
        "PaRa's Q from B: Householder QR or CholeskyQR2; auto takes the latter on a GPU.",
        ("auto", "qr", "cholesky"),
    )
    init: str = _option("least-energy", "How PaRa starts.", ("least-energy", "orthonormal", "gate", "soft"))
    gate_steps: int = _option(100, "With init gate: steps until the gate is open.")
    krona_factors: tuple[int, int] = _option(
        (16, 4), "DiffuseKronA's a1 and a2: its down factor is (a2, a1)."
    )
    placeholder: str = _option("<sks>", "Textual inversion: the new token; put it into the prompts.")
    initializer: str = _option("", "Textual inversion: a word of one token to start from.")
    placeholder_vectors: int = _option(1, "Textual inversion: the number of vectors of the token.")

    # the data
    resolution: int | None = _option(None, "Side of the square pictures; by default the model's own.")
    random_flip: bool = _option(False, "Mirror half of the pictures.")
    class_folder: Path | None = _option(None, "Prior preservation: pictures of the class; drawn if too few.")
    class_prompt: str = _option("", "Prior preservation: a text for these, such as 'a photo of a dog'.")
    class_images: int = _option(50, "Prior preservation: how many.")
    prior_weight: float = _option(1.0, "Prior preservation: the weight of its loss.")

    prompt_chunks: int = _option(1, "How many times 75 tokens a text may have; each is encoded alone.")
    caption_dropout: float = _option(0.0, "Share of pictures that are trained without a text.")
    shuffle_tags: bool = _option(False, "Put what the commas of a text divide into another order each time.")
    keep_tags: int = _option(0, "With shuffle_tags: how many at the start stay where they are.")

    # the loss
    prediction_type: str | None = _option(
        None, "What the model predicts; by default what its files say.", PREDICTIONS
    )
    min_snr_gamma: float | None = _option(None, "Min-SNR weighting, usually 5.")
    noise_offset: float = _option(0.0, "Noise offset, such as 0.05.")

    # the steps
    steps: int = _option(200, "Optimiser steps; the paper uses 200 for PaRa.")
    batch_size: int = _option(1, "Pictures at once on each device.")
    accumulation: int = _option(1, "Batches that make a step.")
    learning_rate: float | None = _option(None, "By default the method's own.")
    lr_scheduler: str = _option(
        "constant",
        "Course of the learning rate.",
        ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    lr_warmup_steps: int = _option(0, "Steps until the learning rate is reached.")
    weight_decay: float = _option(1e-2, "AdamW's, for all but PaRa's B: that one's is always 0.")
    adam_beta1: float = _option(0.9, "AdamW's first beta.")
    adam_beta2: float = _option(0.999, "AdamW's second beta.")
    adam_epsilon: float = _option(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = _option(1.0, "Gradients are clipped to this norm; 0 for no clipping.")
    ema_decay: float = _option(0.0, "Decay of the average that is saved; 0 for none.")
    mixed_precision: str = _option(
        "no", "Dtype of the frozen weights and of autocast.", ("no", "fp16", "bf16")
    )
    gradient_checkpointing: bool = _option(False, "Less memory for more time.")
    device: str | None = _option(None, "cpu or cuda; by default the one that accelerate finds.")
    seed: int = _option(0, "All chance comes from this and the step.")

    # checkpoints, samples and trackers
    save_every: int = _option(100, "Steps between checkpoints; 0 for none but the last.")
    checkpoints_limit: int = _option(2, "How many checkpoints are kept, and one to fall back to; 0: all.")
    validation_prompts: tuple[str, ...] = _option((), "Prompts that are drawn on the way and at the end.")
    validation_every: int = _option(50, "Steps between these pictures.")
    validation_steps: int = _option(25, "Sampling steps of these pictures.")
    validation_guidance: float = _option(7.5, "Guidance of these pictures.")
    validation_seeds: tuple[int, ...] = _option((0, 1), "One picture of each prompt for each seed.")
    tracker: str = _option("none", "A tracker of accelerate's as well.", ("none", "tensorboard", "wandb"))

    def __post_init__(self) -> None:
        given = (f for f in fields(self) if not (f.default is None and getattr(self, f.name) is None))
        for name, choices in ((f.name, f.metadata["choices"]) for f in given):
            if choices and getattr(self, name) not in choices:
                raise _wrong(name, ", ".join(choices), getattr(self, name))
        for name in _AT_LEAST_1:
            if getattr(self, name) < 1:
                raise _wrong(name, "1 or more", getattr(self, name))
        for name in _AT_LEAST_0:
            if getattr(self, name) < 0:
                raise _wrong(name, "0 or more", getattr(self, name))
        for name in ("noise_offset", "prior_weight", "weight_decay", "max_grad_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise _wrong(name, "0 or more", getattr(self, name))
        for name in ("learning_rate", "min_snr_gamma", "alpha"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise _wrong(name, "above 0", value)
        for name in ("ema_decay", "caption_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise _wrong(name, "0 to below 1", getattr(self, name))
        if self.resolution is not None and (self.resolution < 8 or self.resolution % 8):
            raise _wrong("resolution", "a multiple of 8", self.resolution)
        if self.class_folder is not None and not self.class_prompt:
            raise _wrong("class_prompt", "a text for the pictures in class_folder", "nothing")
        if self.init == "gate" and self.method == "para" and self.gate_steps >= self.steps:
            raise _wrong("gate_steps", f"below steps ({self.steps}), to be open at the end", self.gate_steps)
        if self.method == "textual-inversion" and self.placeholder not in self.instance_prompt:
            raise _wrong("instance_prompt", f"a prompt with {self.placeholder} in it", self.instance_prompt)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return METHODS[self.method] if self.learning_rate is None else self.learning_rate

    def plain(self) -> dict[str, Any]:
        """The fields that are set, as TOML and JSON have them: paths as text, tuples as lists, no None."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: _plain(value) for key, value in values.items()}

    def identity(self) -> str:
        """SHA-256 (hex) of all settings that decide a step's computation, without the data and the files'
        places."""
        places = {"model", "instance_folder", "class_folder", "device"}
        decisive = {key: value for key, value in self.plain().items() if key not in _FREE | places}
        if self.lr_scheduler not in ("constant", "constant_with_warmup"):
            decisive["steps"] = self.steps  # the course of the rate depends on where it ends
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def config_from_toml(path: Path, **overrides: Any) -> TrainConfig:
    """Read a configuration; the settings in ``overrides`` (the flags that were given) win over the file's.

    Relative paths in the file are relative to the current folder, as they are on the command line.

    Raises
    ------
    UsageError
        It is no TOML, has fields that do not exist or of another type, or misses some.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the configuration cannot be read ({error})", where=path) from error
    return config_from(values | overrides, str(path))


def config_from(values: Mapping[str, Any], where: str) -> TrainConfig:
    """A configuration from plain values (text for paths, lists for tuples); raises UsageError as above."""
    known = {f.name: f for f in fields(TrainConfig)}
    if unknown := sorted(set(values) - set(known)):
        raise UsageError("there are no such settings", where=where, found=", ".join(unknown))
    if missing := [n for n, f in known.items() if f.default is MISSING and n not in values]:
        raise UsageError(
            "settings are missing",
            where=where,
            expected=", ".join(missing),
            hint="give them in the file or as flags: "
            + " ".join(f"--{n.replace('_', '-')}" for n in missing),
        )
    return TrainConfig(**{name: _typed(name, str(known[name].type), value) for name, value in values.items()})


def config_to_toml(config: TrainConfig) -> str:
    """The configuration as TOML; :func:`config_from_toml` reads it back to an equal one."""
    return "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.plain().items()
    )


def with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    """The same configuration with another number of steps."""
    return replace(config, steps=steps)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _typed(name: str, kind: str, value: Any) -> Any:
    """``value`` as the field's type has it."""
    base = kind.removesuffix(" | None")
    if base == "Path" and isinstance(value, (str, Path)):
        return Path(value)
    if base.startswith("tuple") and isinstance(value, (list, tuple)):
        of = int if "int" in base else str
        if all(isinstance(item, of) and not isinstance(item, bool) for item in value):
            if "..." not in base and len(value) != base.count("int"):
                raise _wrong(name, f"{base.count('int')} numbers", value)
            return tuple(value)
    if base == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    plain = {"int": int, "str": str, "bool": bool}.get(base)
    if plain is not None and isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    if value is None and kind.endswith("None"):
        return None
    raise _wrong(name, base, value)


def _wrong(name: str, expected: str, found: object) -> UsageError:
    return UsageError("a setting is out of range", where=name, expected=expected, found=found)
