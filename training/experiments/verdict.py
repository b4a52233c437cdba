"""What can be said of a claim: it holds here, does not, or cannot be told at this scale.

Rows are compared on the same columns (a subject and a prompt), so each column gives one difference. The
verdict comes from a confidence interval of their mean by Student's t: differences that could as well be noise
are called so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Claim", "Correlated", "Greater", "Line", "Smaller", "Trend", "Verdict", "judge"]

CONFIDENCE = 0.95
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"


@dataclass(frozen=True)
class Line:
    """One result: a cell in one run. ``metrics`` are means over its pictures or pairs."""

    row: str
    column: str
    run: int
    metrics: Mapping[str, float]
    tuning: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "row": self.row,
            "column": self.column,
            "run": self.run,
            "tuning": self.tuning,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True)
class Greater:
    """``metric`` is greater in the row ``better`` than in ``worse``."""

    metric: str
    better: str
    worse: str


@dataclass(frozen=True)
class Trend:
    """``metric`` rises (or falls) along ``rows``, by its rank correlation with their order."""

    metric: str
    rows: tuple[str, ...]
    rising: bool = True


@dataclass(frozen=True)
class Correlated:
    """Over all rows that have both, the metrics ``x`` and ``y`` go together, by Spearman's correlation."""

    x: str
    y: str


@dataclass(frozen=True)
class Smaller:
    """``metric`` is a plain count, without noise, and smaller in the row ``less`` than in ``more``."""

    metric: str
    less: str
    more: str


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, and how it is put to the test."""

    text: str
    where: str
    test: Greater | Trend | Correlated | Smaller


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict and, in words with the numbers, the reason for it."""

    claim: Claim
    verdict: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {
            "claim": self.claim.text,
            "where": self.claim.where,
            "verdict": self.verdict,
            "reason": self.reason,
        }


def judge(claim: Claim, lines: Sequence[Line]) -> Verdict:
    """Judge ``claim`` by ``lines``; columns for tuning do not count."""
    lines = [line for line in lines if not line.tuning]
    test = claim.test
    if isinstance(test, Greater):
        verdict, reason = _greater(test, lines)
    elif isinstance(test, Trend):
        verdict, reason = _trend(test, lines)
    elif isinstance(test, Smaller):
        verdict, reason = _smaller(test, lines)
    else:
        verdict, reason = _correlated(test, lines)
    return Verdict(claim, verdict, reason)


def column_means(lines: Sequence[Line], row: str, metric: str) -> dict[str, float]:
    """The mean over runs of a row's metric, by column."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if line.row == row and metric in line.metrics:
            found.setdefault(line.column, []).append(line.metrics[metric])
    return {column: math.fsum(values) / len(values) for column, values in found.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the half-width of its confidence interval; infinite for a single value."""
    from scipy.special import stdtrit

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.inf
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error


def _greater(test: Greater, lines: Sequence[Line]) -> tuple[str, str]:
    better, worse = (column_means(lines, row, test.metric) for row in (test.better, test.worse))
    columns = [column for column in better if column in worse]
    if not columns:
        return OPEN, f"{test.metric} was not measured of both {test.better} and {test.worse}"
    values, unit = [better[column] - worse[column] for column in columns], "columns"
    if len(columns) == 1:
        # one column: its runs, which have the same seeds in both rows, take the columns' place
        runs = [_by_run(lines, row, test.metric) for row in (test.better, test.worse)]
        values, unit = [runs[0][run] - runs[1][run] for run in runs[0] if run in runs[1]], "runs"
    mean, width = interval(values)
    wins = sum(value > 0 for value in values)
    reason = (
        f"{test.metric}: {test.better} minus {test.worse} = {_with_error(mean, width)}, "
        f"greater in {wins} of {len(values)} {unit}"
    )
    return _side(mean, width), reason


def _by_run(lines: Sequence[Line], row: str, metric: str) -> dict[int, float]:
    return {line.run: line.metrics[metric] for line in lines if line.row == row and metric in line.metrics}


def _trend(test: Trend, lines: Sequence[Line]) -> tuple[str, str]:
    from scipy.stats import spearmanr

    means = [column_means(lines, row, test.metric) for row in test.rows]
    columns = [column for column in means[0] if all(column in each for each in means)]
    if len(test.rows) < 2 or not columns:
        return OPEN, f"{test.metric} was not measured along at least two of {', '.join(test.rows)}"
    order = range(len(test.rows))
    found = [float(spearmanr(order, [each[column] for each in means]).statistic) for column in columns]
    sign = 1 if test.rising else -1
    values = [sign * value for value in found if math.isfinite(value)]
    if not values:
        return OPEN, f"{test.metric} is the same in all of {', '.join(test.rows)}"
    mean, width = interval(values)
    direction = "rises" if test.rising else "falls"
    reason = (
        f"{test.metric} {direction} along {', '.join(test.rows)}: "
        f"rank correlation {_with_error(mean, width)} over {len(values)} columns"
    )
    return _side(mean, width), reason


def _correlated(test: Correlated, lines: Sequence[Line]) -> tuple[str, str]:
    from scipy.stats import spearmanr

    points = []
    for row in dict.fromkeys(line.row for line in lines):
        x, y = (column_means(lines, row, metric) for metric in (test.x, test.y))
        points += [(x[column], y[column]) for column in x if column in y]
    xs, ys = zip(*points, strict=True) if points else ((), ())
    if len(points) < 4 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return OPEN, f"{len(points)} points are too few for a correlation of {test.x} and {test.y}"
    found = spearmanr(xs, ys)
    statistic, p = float(found.statistic), float(found.pvalue)
    reason = f"rank correlation of {test.x} and {test.y} {statistic:.3f}, p = {p:.2g}, {len(points)} points"
    if p > 1 - CONFIDENCE:
        return OPEN, reason + ": within noise"
    return (HOLDS if statistic > 0 else FAILS), reason


def _smaller(test: Smaller, lines: Sequence[Line]) -> tuple[str, str]:
    less, more = (column_means(lines, row, test.metric) for row in (test.less, test.more))
    columns = [column for column in less if column in more]
    if not columns:
        return OPEN, f"{test.metric} is not known of both {test.less} and {test.more}"
    ratio = sum(less[column] for column in columns) / sum(more[column] for column in columns)
    holds = all(less[column] < more[column] for column in columns)
    reason = f"{test.metric}: {test.less} has {ratio:.3g} times that of {test.more}"
    return (HOLDS if holds else FAILS), reason


def _side(mean: float, width: float) -> str:
    if abs(mean) <= width:
        return OPEN
    return HOLDS if mean > 0 else FAILS


def _with_error(mean: float, width: float) -> str:
    if math.isinf(width):
        return f"{mean:+.4f} (one value alone: no error bar)"
    text = f"{mean:+.4f} ± {width:.4f} ({CONFIDENCE:.0%})"
    return text + (", within noise" if abs(mean) <= width else "")
