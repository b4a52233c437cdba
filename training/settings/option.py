"""Fields of the settings: each is a flag with a help text, and errors name it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, field
from typing import Any

from paramerge.errors import UsageError

__all__ = ["at_least", "finite", "option", "wrong"]


def option(default: Any, help_text: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field of the configuration; without a value of its own where ``default`` is ``MISSING``."""
    metadata = {"help": help_text, "choices": choices}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def wrong(name: str, expected: str, found: object) -> UsageError:
    """The error for a setting that is out of range."""
    return UsageError("a setting is out of range", where=name, expected=expected, found=found)


def at_least(settings: Any, least: int, names: Iterable[str]) -> None:
    """Refuse whole numbers below ``least``.

    Raises
    ------
    UsageError
    """
    for name in names:
        if getattr(settings, name) < least:
            raise wrong(name, f"{least} or more", getattr(settings, name))


def finite(settings: Any, names: Iterable[str], *, positive: bool = False) -> None:
    """Refuse numbers that are below 0 (or 0, where they must be ``positive``) or not finite; None passes.

    Raises
    ------
    UsageError
    """
    for name in names:
        value = getattr(settings, name)
        if value is None:
            continue
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise wrong(name, "above 0" if positive else "0 or more", value)
