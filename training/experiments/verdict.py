"""The verdict on a claim: it holds here, does not, or cannot be told at this scale.

Rows are compared on the same subjects, so each subject, over all its prompts and runs, gives one difference:
prompts of one subject are no independent evidence for another. The verdict comes from a confidence interval
of the mean difference by Student's t, or Page's test for trends; a result that could as well be noise is
called so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    """``metric`` rises (or falls) along ``rows``."""

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
    """A claim of the paper: its text, its place, and its test."""

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
    return _means(lines, row, metric, lambda line: line.column)


def subject_means(lines: Sequence[Line], row: str, metric: str) -> dict[str, float]:
    """The mean over prompts and runs of a row's metric, by subject: a column's name begins with it."""
    return _means(lines, row, metric, lambda line: line.column.partition(": ")[0])


def _means(lines: Sequence[Line], row: str, metric: str, key: Callable[[Line], Any]) -> dict[Any, float]:
    found: dict[Any, list[float]] = {}
    for line in lines:
        if line.row == row and metric in line.metrics:
            found.setdefault(key(line), []).append(line.metrics[metric])
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the half-width of its confidence interval; infinite for a single value."""
    from scipy.special import stdtrit

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.inf
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error


def _greater(test: Greater, lines: Sequence[Line]) -> tuple[str, str]:
    by: Callable[..., dict[Any, float]] = subject_means
    better, worse = (by(lines, row, test.metric) for row in (test.better, test.worse))
    common, unit = [name for name in better if name in worse], "subjects"
    if not common:
        return OPEN, f"{test.metric} was not measured of both {test.better} and {test.worse}"
    values = [better[name] - worse[name] for name in common]
    if len(common) == 1:
        # one subject: its runs, which have the same seeds in both rows, take the subjects' place
        runs = [_means(lines, row, test.metric, lambda line: line.run) for row in (test.better, test.worse)]
        each, unit = [runs[0][run] - runs[1][run] for run in runs[0] if run in runs[1]], "runs of one subject"
        values = each if len(set(each)) > 1 else values
    mean, width = interval(values)
    wins = sum(value > 0 for value in values)
    reason = (
        f"{test.metric}: {test.better} minus {test.worse} = {_with_error(mean, width)}, "
        f"greater in {wins} of {len(values)} {unit}"
    )
    return _side(mean, width), reason


def _trend(test: Trend, lines: Sequence[Line]) -> tuple[str, str]:
    from scipy.stats import page_trend_test  # type: ignore[attr-defined]

    first, last = (test.rows[-1], test.rows[0]) if test.rising else (test.rows[0], test.rows[-1])
    means = [subject_means(lines, row, test.metric) for row in test.rows]
    subjects = [name for name in means[0] if all(name in each for each in means)]
    if len(test.rows) < 3 or len(subjects) < 2:
        return _greater(Greater(test.metric, first, last), lines)
    data = np.array([[each[name] for each in means] for name in subjects])
    data = data if test.rising else data[:, ::-1]
    with_it, against = (float(page_trend_test(part).pvalue) for part in (data, data[:, ::-1]))
    direction = "rises" if test.rising else "falls"
    reason = (
        f"{test.metric} {direction} along {', '.join(test.rows)}: p = {with_it:.2g} by Page's test over "
        f"{len(subjects)} subjects (the other way round: p = {against:.2g})"
    )
    if with_it <= 1 - CONFIDENCE:
        return HOLDS, reason
    return (FAILS, reason) if against <= 1 - CONFIDENCE else (OPEN, reason + ": within noise")


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
