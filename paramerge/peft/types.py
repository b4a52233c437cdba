"""PaRa's place in PEFT: its type, and its entries in PEFT's tables."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from peft import mapping

PREFIX = "para_"
"""The beginning of the names of PaRa's parameters."""


class PaRaType(StrEnum):
    """PEFT's list of types is closed, so PaRa brings one; as a string it is the key that PEFT looks up."""

    PARA = "PARA"


def register(config: type[Any], model: type[Any]) -> None:
    """Enter PaRa into PEFT's tables of configurations, tuners and prefixes; again is no harm."""
    kind: Any = PaRaType.PARA
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = model
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = PREFIX
