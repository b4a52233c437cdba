"""PEFT's configurations of tuners beside LoRA: LoHa, LoKr, OFT, BOFT, IA3, and LoRA with DoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paramerge.errors import FamilyError
from paramerge.formats.layer_patterns import check_patterns, whole_match
from paramerge.formats.peft_config import LoraSettings, bad_option, flag, read_settings

__all__ = ["TUNERS", "TunerSettings", "read_tuner"]

TUNERS = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3")
"""PEFT's types whose files can be baked."""

_MAX_TERMS = 100
"""Terms of a series; PEFT's default is 5, and each is a product of matrices for every layer."""


@dataclass(frozen=True)
class TunerSettings:
    """The part of a configuration that decides what the tensors mean.

    Attributes
    ----------
    scaling:
        alpha and ranks of LoRA, LoHa and LoKr.
    shared_block:
        OFT: one block for all groups of inputs.
    series_terms:
        OFT: terms of the Cayley transform's series, or None for the inverse.
    feedforward:
        IA3: the layers whose inputs are scaled, names or a regular expression.
    """

    tuner: str
    where: str
    scaling: LoraSettings | None = None
    shared_block: bool = False
    series_terms: int | None = None
    feedforward: str | tuple[str, ...] = ()

    def rank_of(self, path: str) -> int | None:
        """The rank that is configured for the layer ``path``; None for tuners without ranks."""
        return None if self.scaling is None else self.scaling.rank_of(path)

    def scales_inputs(self, path: str) -> bool:
        """Whether IA3 scales the inputs of the layer ``path``, as PEFT tells it by the module's name."""
        for spelling in (path, path.removeprefix("text_model.")):
            if isinstance(self.feedforward, str):
                if whole_match(self.feedforward, spelling):
                    return True
            elif spelling.endswith(self.feedforward):
                return True
        return False


def read_tuner(config: Mapping[str, object], where: str) -> TunerSettings:
    """Check a configuration of one of :data:`TUNERS`.

    Raises
    ------
    FamilyError
        Another tuner, or one with an option that changes what it is.
    AdapterError
        An option has an impossible value.
    """
    tuner = str(config.get("peft_type", "LORA"))
    if tuner not in TUNERS or tuner == "LORA":
        return TunerSettings("LORA", where, read_settings(config, where))
    if tuner in ("LOHA", "LOKR"):
        renamed = {**config, "lora_alpha": config.get("alpha"), "peft_type": "LORA"}
        return TunerSettings(tuner, where, read_settings(renamed, where))
    if tuner == "OFT":
        return _oft(config, where)
    if tuner == "BOFT":
        _refuse_biases(config, where)
    if tuner == "IA3":
        return TunerSettings(tuner, where, feedforward=_feedforward(config, where))
    return TunerSettings(tuner, where)


def _oft(config: Mapping[str, object], where: str) -> TunerSettings:
    _refuse_biases(config, where)
    option = "num_cayley_neumann_terms"
    terms = config.get(option, 5)
    series = flag(config, "use_cayley_neumann", where, default=True)
    if series and (type(terms) is not int or not 0 < terms <= _MAX_TERMS):
        raise bad_option(option, terms, where, f"a whole number from 1 to {_MAX_TERMS}")
    return TunerSettings(
        "OFT",
        where,
        shared_block=flag(config, "block_share", where),
        series_terms=terms if series and isinstance(terms, int) else None,
    )


def _feedforward(config: Mapping[str, object], where: str) -> str | tuple[str, ...]:
    option = "feedforward_modules"
    named = config.get(option) or ()
    if isinstance(named, str):
        check_patterns(option, [named], where)
        return named
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        raise bad_option(option, named, where, "a list of names or a regular expression")
    check_patterns(option, list(named), where, names=True)
    return tuple(named)


def _refuse_biases(config: Mapping[str, object], where: str) -> None:
    stated = config.get("bias", "none")
    if not isinstance(stated, str):
        raise bad_option("bias", stated, where, "none, all, or the tuner's own")
    if stated != "none":
        raise _other(where, "trained biases", f"bias: {stated}")


def _other(where: str, what: str, found: str) -> FamilyError:
    return FamilyError(
        f"this adapter comes with {what}, which cannot be baked by this version",
        where=where,
        expected="bias: none",
        found=found,
    )
