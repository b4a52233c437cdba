"""The claims of the paper as data: each one's text, its place, and the test that it is put to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Alike", "Claim", "Correlated", "Greater", "Near", "Prompted", "Smaller", "Test", "Trend"]

Prompted = Literal["all", "plain", "others"]
"""The prompts that count: all, the plain one of Table 2 alone, or all others."""


@dataclass(frozen=True)
class Greater:
    """``metric`` is greater in the row ``better`` than in ``worse``."""

    metric: str
    better: str
    worse: str
    prompts: Prompted = "all"


@dataclass(frozen=True)
class Trend:
    """``metric`` rises (or falls) along ``rows``."""

    metric: str
    rows: tuple[str, ...]
    rising: bool = True


@dataclass(frozen=True)
class Correlated:
    """The means of the metrics ``x`` and ``y`` go together over the rows that have both, by Spearman's
    correlation: columns of one row are no points of their own."""

    x: str
    y: str


@dataclass(frozen=True)
class Smaller:
    """``metric`` is a plain count, without noise, and smaller in the row ``less`` than in ``more``."""

    metric: str
    less: str
    more: str


@dataclass(frozen=True)
class Near:
    """``metric`` of ``row`` is within ``margin`` of ``value``, by two one-sided tests."""

    metric: str
    row: str
    value: float
    margin: float


@dataclass(frozen=True)
class Alike:
    """``metric`` differs between two rows by less than ``margin``, by two one-sided tests."""

    metric: str
    first: str
    second: str
    margin: float


Test = Greater | Trend | Correlated | Smaller | Near | Alike


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: its text, its place, and its test."""

    text: str
    where: str
    test: Test
