"""PEFT's LoRA configuration: which alpha a layer has, and what would make it more than plain LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from paramerge.errors import AdapterError, FamilyError
from paramerge.formats.pairs import Scaling

__all__ = ["LoraSettings", "read_settings"]

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
        return self.rank_pattern.get(_matching(self.rank_pattern, path), self.rank)

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
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, path), self.alpha)
        return Scaling(alpha, self.rslora)


def read_settings(config: Mapping[str, object], where: str) -> LoraSettings:
    """Check a LoRA configuration of PEFT and keep what decides the scale.

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
    # fan_in_fan_out is not looked at: it says how the base stores a weight, and B A is (out, in) either way
    return LoraSettings(
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha", where),
        rank=_rank(config.get("r"), "r", where),
        alpha_pattern={
            k: _alpha(v, f"alpha_pattern[{k}]", where, off=True)
            for k, v in _pattern(config, "alpha_pattern", where)
        },
        rank_pattern={
            k: _rank(v, f"rank_pattern[{k}]", where) for k, v in _pattern(config, "rank_pattern", where)
        },
        rslora=bool(config.get("use_rslora")),
        where=where,
        dora=bool(config.get("use_dora")),
    )


_DEFT_HINT = "PEFT's DEFT with para=True is a PaRa, which becomes a PaRa file by: paramerge convert --to para"


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


def _matching(pattern: Mapping[str, object], path: str) -> str:
    """The first key of ``pattern`` that names ``path``, as PEFT has it: a regex for the end of the path.

    Text encoders are wrapped with and without ``text_model.`` in front, so either spelling may be meant.
    """
    for key in pattern:
        if any(_pattern_for(key).match(spelling) for spelling in (path, path.removeprefix("text_model."))):
            return key
    return path


@cache
def _pattern_for(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def _alpha(value: object, option: str, where: str, *, off: bool = False) -> float:
    """A finite number; 0 only where ``off`` allows it, of a single layer that is switched off."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad_option(option, value, where, "a number")
    try:
        alpha = float(value)
    except OverflowError:
        alpha = math.inf
    if not math.isfinite(alpha) or (alpha == 0 and not off):
        raise _bad_option(option, value, where, "a finite number" if off else "a finite number other than 0")
    return alpha


def _rank(value: object, option: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _bad_option(option, value, where, "a whole number above 0")
    return value


def _pattern(config: Mapping[str, object], option: str, where: str) -> list[tuple[str, object]]:
    pattern = config.get(option) or {}
    if not isinstance(pattern, dict):
        raise _bad_option(option, pattern, where, "a map from layer names to numbers")
    for key in pattern:
        try:
            _pattern_for(key)
        except (re.error, OverflowError, RecursionError) as error:
            raise _bad_option(
                option, f"{key} ({error})", where, "names of layers or regular expressions"
            ) from None
    return list(pattern.items())


def _bad_option(option: str, value: object, where: str, expected: str) -> AdapterError:
    return AdapterError(
        "an option of this configuration has an impossible value",
        where=where,
        expected=f"{option}: {expected}",
        found=f"{option}: {value!r}",
    )
