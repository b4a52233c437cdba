"""PEFT's configurations with ranks: the alpha of a layer, and options beyond plain LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as repr_of

from paramerge.adapters.layer_patterns import check_patterns, first_match
from paramerge.adapters.scaling import Scaling
from paramerge.errors import AdapterError, FamilyError, shortened
from paramerge.wording import call

_OTHER_METHODS = {
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layer replication",
    "target_parameters": "LoRA on bare parameters",
}
"""Options that make the adapter something else than ``W + scale * B A`` on its layers."""

_INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoraSettings:
    """The part of a ``LoraConfig`` that decides a layer's scale."""

    alpha: float
    rank: int
    alpha_pattern: Mapping[str, float]
    rank_pattern: Mapping[str, int]
    rslora: bool
    where: str
    dora: bool = False

    def rank_of(self, path: str) -> int:
        """The rank that the configuration states for the layer ``path``."""
        key = first_match(self.rank_pattern, path)
        return self.rank if key is None else self.rank_pattern[key]

    def scaling(self, path: str, rank: int) -> Scaling:
        """The scaling of the layer ``path`` (in the model's own naming), whose tensors have ``rank``.

        Raises
        ------
        AdapterError
            The configuration states another rank than the tensors have.
        """
        stated = self.rank_of(path)
        if stated != rank:
            raise AdapterError(
                "the configuration and the weights do not belong together: they differ in a layer's rank",
                where=f"{self.where}: {path}",
                expected=f"rank {stated}, as configured",
                found=f"rank {rank}",
                hint="give the adapter_config.json that was saved with these weights",
            )
        key = first_match(self.alpha_pattern, path)
        return Scaling(self.alpha if key is None else self.alpha_pattern[key], self.rslora)


@dataclass(frozen=True)
class TunerSettings:
    """The options that decide the meaning of the tensors; ``scaling`` of tuners with ranks."""

    tuner: str
    where: str
    scaling: LoraSettings | None = None
    whole: tuple[str, ...] = ()
    """Modules that were trained and saved whole (``modules_to_save``)."""

    def rank_of(self, path: str) -> int | None:
        """The rank that is configured for the layer ``path``; None for tuners without ranks."""
        return None if self.scaling is None else self.scaling.rank_of(path)


def read_lora(config: Mapping[str, object], where: str) -> TunerSettings:
    """LoRA's configuration, checked as by :func:`read_settings`."""
    return TunerSettings("LORA", where, read_settings(config, where))


def read_ranked(config: Mapping[str, object], where: str) -> TunerSettings:
    """The configuration of another tuner with ranks, whose option for alpha is ``alpha``."""
    renamed = {**config, "lora_alpha": config.get("alpha"), "peft_type": "LORA"}
    return TunerSettings(str(config.get("peft_type")), where, read_settings(renamed, where))


def read_settings(config: Mapping[str, object], where: str) -> LoraSettings:
    """Check a LoRA configuration of PEFT and keep the options that decide the scale.

    Raises
    ------
    FamilyError
        It is neither LoRA nor DoRA (another tuner, an initialisation that also changed the base, ...).
    AdapterError
        An option has an impossible value.
    """
    tuner = config.get("peft_type", "LORA")
    if tuner != "LORA":
        raise FamilyError(
            f"this is a PEFT adapter of type {tuner}, which cannot be baked by this version",
            where=where,
            expected="peft_type LORA",
            found=tuner,
            hint=_DEFT_HINT if tuner == "DEFT" else "nothing of it was applied",
        )
    for option, method in _OTHER_METHODS.items():
        if config.get(option):
            raise FamilyError(
                f"this adapter is not plain LoRA but {method}, which cannot be baked by this version",
                where=where,
                expected=f"{option} off",
                found=f"{option}: {config[option]}",
            )
    _refuse_changed_base(config, where)
    # fan_in_fan_out is ignored: it says how the base stores a weight, and B A is (out, in) either way
    return LoraSettings(
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha", where),
        rank=_rank(config.get("r"), "r", where),
        alpha_pattern={
            k: _alpha(v, f"alpha_pattern[{shortened(k)}]", where, off=True)
            for k, v in _pattern(config, "alpha_pattern", where)
        },
        rank_pattern={
            k: _rank(v, f"rank_pattern[{shortened(k)}]", where)
            for k, v in _pattern(config, "rank_pattern", where)
        },
        rslora=flag(config, "use_rslora", where),
        where=where,
        dora=flag(config, "use_dora", where),
    )


_DEFT_HINT = (
    f"PEFT's DEFT with para=True is a PaRa, which becomes a PaRa file by: {call('convert', to='para')}"
)


def _refuse_changed_base(config: Mapping[str, object], where: str) -> None:
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_INITS_THAT_CHANGE_THE_BASE):
        raise FamilyError(
            f"this adapter began with {init}, which changed the base's weights too",
            where=where,
            expected="weights relative to the unchanged base",
            found=f"init_lora_weights: {init}",
            hint="save it again with save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def _alpha(value: object, option: str, where: str, *, off: bool = False) -> float:
    """A finite number; 0 only where ``off`` allows it, of a single layer that is switched off."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_option(option, value, where, "a number")
    try:
        alpha = float(value)
    except OverflowError:
        alpha = math.inf
    if not math.isfinite(alpha) or (alpha == 0 and not off):
        raise bad_option(option, value, where, "a finite number" if off else "a finite number other than 0")
    return alpha


def _rank(value: object, option: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise bad_option(option, value, where, "a whole number above 0")
    return value


def _pattern(config: Mapping[str, object], option: str, where: str) -> list[tuple[str, object]]:
    pattern = config.get(option) or {}
    if not isinstance(pattern, dict):
        raise bad_option(option, pattern, where, "a map from layer names to numbers")
    check_patterns(option, list(pattern), where)
    return list(pattern.items())


def flag(config: Mapping[str, object], option: str, where: str, default: bool = False) -> bool:
    """The option of a configuration that is true or false.

    Raises
    ------
    AdapterError
        It is anything else.
    """
    value = config.get(option)
    if value is None or isinstance(value, bool):
        return default if value is None else value
    raise bad_option(option, value, where, "true or false")


def bad_option(option: str, value: object, where: str, expected: str) -> AdapterError:
    """The error for an option with a value that it cannot have."""
    return AdapterError(
        "an option of this configuration has an impossible value",
        where=where,
        expected=f"{option}: {expected}",
        found=f"{option}: {repr_of(value)}",
    )
