"""PEFT's configurations of tuners beside LoRA: LoHa, LoKr, OFT, BOFT, IA3, and LoRA with DoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from paramerge.errors import AdapterError, FamilyError
from paramerge.formats.peft_config import LoraSettings, read_settings

__all__ = ["TUNERS", "TunerSettings", "read_tuner"]

TUNERS = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3")
"""PEFT's types whose files can be baked."""


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

    def scales_inputs(self, path: str) -> bool:
        """Whether IA3 scales the inputs of the layer ``path``, as PEFT tells it by the module's name."""
        for spelling in (path, path.removeprefix("text_model.")):
            if isinstance(self.feedforward, str):
                if re.fullmatch(self.feedforward, spelling):
                    return True
            elif any(spelling.endswith(end) for end in self.feedforward):
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
    if tuner == "BOFT" and str(config.get("bias", "none")) != "none":
        raise _other(where, "trained biases", f"bias: {config['bias']}")
    if tuner == "IA3":
        named = config.get("feedforward_modules") or ()
        feedforward = named if isinstance(named, str) else tuple(str(n) for n in _listed(named, where))
        return TunerSettings(tuner, where, feedforward=feedforward)
    return TunerSettings(tuner, where)


def _oft(config: Mapping[str, object], where: str) -> TunerSettings:
    if str(config.get("bias", "none")) != "none":
        raise _other(where, "trained biases", f"bias: {config['bias']}")
    terms = config.get("num_cayley_neumann_terms", 5)
    series = bool(config.get("use_cayley_neumann", True))
    if series and (isinstance(terms, bool) or not isinstance(terms, int) or terms < 1):
        raise AdapterError(
            "an option of this configuration has an impossible value",
            where=where,
            expected="num_cayley_neumann_terms: a whole number above 0",
            found=f"num_cayley_neumann_terms: {terms!r}",
        )
    return TunerSettings(
        "OFT",
        where,
        shared_block=bool(config.get("block_share")),
        series_terms=int(str(terms)) if series else None,
    )


def _listed(value: object, where: str) -> list[object]:
    if isinstance(value, list | tuple):
        return list(value)
    raise AdapterError(
        "an option of this configuration has an impossible value",
        where=where,
        expected="feedforward_modules: a list of names or a regular expression",
        found=f"feedforward_modules: {value!r}",
    )


def _other(where: str, what: str, found: str) -> FamilyError:
    return FamilyError(
        f"this adapter comes with {what}, which cannot be baked by this version",
        where=where,
        expected="bias: none",
        found=found,
    )
