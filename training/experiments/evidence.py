"""The tests that claims are put to, and what each says of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from paramerge.training.experiments.claims import (
    Alike,
    Correlated,
    Greater,
    Near,
    Prompted,
    Smaller,
    Test,
    Trend,
)
from paramerge.training.experiments.line import Line, column_means, means_by, subject_means

__all__ = ["CONFIDENCE", "FAILS", "HOLDS", "OPEN", "Evidence", "evidence_for", "interval"]

CONFIDENCE = 0.95
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
_FEWEST_FOR_PAGE, _FEWEST_POINTS = 3, 4
_EXACT_POINTS = 8
"""Rows up to which all orders are counted; beyond, SciPy's approximation is exact to a percent."""


@dataclass(frozen=True)
class Evidence:
    """A test's outcome: the verdict, its reason in words, its two-sided p, and the numbers it was made of."""

    verdict: str
    reason: str
    p: float | None = None
    metric: str = ""
    values: tuple[float, ...] = ()


@singledispatch
def evidence_for(test: Test, lines: Sequence[Line]) -> Evidence:
    """The evidence of ``lines``, none of them for tuning, for a claim's test."""
    raise TypeError(f"{type(test).__name__} is no test")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the half-width of its confidence interval; infinite for a single value."""
    from scipy.special import stdtrit

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * _error(values)


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _one_sided(values: Sequence[float], than: float) -> float:
    """p of a mean that is no greater than ``than``, by Student's t; 1 for a single value."""
    from scipy.special import stdtr

    if len(values) < 2:
        return 1.0
    mean, error = math.fsum(values) / len(values), _error(values)
    if error == 0:
        return 0.0 if mean > than else 1.0
    return float(stdtr(len(values) - 1, -(mean - than) / error))


def _prompted(lines: Sequence[Line], prompts: Prompted) -> list[Line]:
    if prompts == "all":
        return list(lines)
    return [line for line in lines if line.plain == (prompts == "plain")]


def _differences(first: str, second: str, metric: str, lines: Sequence[Line]) -> tuple[list[float], str]:
    """The differences of two rows by subject (of one subject alone, by run), and what they are of."""
    one, other = (subject_means(lines, row, metric) for row in (first, second))
    common = [name for name in one if name in other]
    values = [one[name] - other[name] for name in common]
    if len(common) != 1:
        return values, "subjects"
    # one subject: its runs, which have the same seeds in both rows, take the subjects' place
    runs = [means_by(lines, row, metric, lambda line: line.run) for row in (first, second)]
    each = [runs[0][run] - runs[1][run] for run in runs[0] if run in runs[1]]
    return (each if len(set(each)) > 1 else values), "runs of one subject"


@evidence_for.register
def _greater(test: Greater, lines: Sequence[Line]) -> Evidence:
    values, unit = _differences(test.better, test.worse, test.metric, _prompted(lines, test.prompts))
    if not values:
        return Evidence(OPEN, f"{test.metric} was not measured of both {test.better} and {test.worse}")
    mean, width = interval(values)
    wins = sum(value > 0 for value in values)
    where = {"all": "", "plain": ", on the plain prompt", "others": ", on the other prompts"}[test.prompts]
    p = None
    if len(values) > 1:
        p = min(1.0, 2 * min(_one_sided(values, 0), _one_sided([-value for value in values], 0)))
    reason = (
        f"{test.metric}{where}: {test.better} minus {test.worse} = {_with_error(mean, width)}, "
        f"greater in {wins} of {len(values)} {unit}"
    )
    return Evidence(_side(mean, width), reason, p, test.metric, tuple(values))


@evidence_for.register
def _trend(test: Trend, lines: Sequence[Line]) -> Evidence:
    from scipy.stats import page_trend_test  # type: ignore[attr-defined]

    first, last = (test.rows[-1], test.rows[0]) if test.rising else (test.rows[0], test.rows[-1])
    means = [subject_means(lines, row, test.metric) for row in test.rows]
    subjects = [name for name in means[0] if all(name in each for each in means)]
    if len(test.rows) < _FEWEST_FOR_PAGE or len(subjects) < 2:
        return _greater(Greater(test.metric, first, last), lines)
    data = np.array([[each[name] for each in means] for name in subjects])
    data = data if test.rising else data[:, ::-1]
    with_it, against = (float(page_trend_test(part).pvalue) for part in (data, data[:, ::-1]))
    direction = "rises" if test.rising else "falls"
    reason = (
        f"{test.metric} {direction} along {', '.join(test.rows)}: p = {with_it:.2g} by Page's test over "
        f"{len(subjects)} subjects (the other way round: p = {against:.2g})"
    )
    p, values = min(1.0, 2 * min(with_it, against)), tuple(data.ravel().tolist())
    if p > 1 - CONFIDENCE:
        return Evidence(OPEN, reason + ": within noise", p, test.metric, values)
    return Evidence(HOLDS if with_it < against else FAILS, reason, p, test.metric, values)


@evidence_for.register
def _correlated(test: Correlated, lines: Sequence[Line]) -> Evidence:
    from scipy.stats import spearmanr

    points = []
    for row in dict.fromkeys(line.row for line in lines):
        x, y = (column_means(lines, row, metric) for metric in (test.x, test.y))
        if common := [column for column in x if column in y]:
            points.append(tuple(math.fsum(m[column] for column in common) / len(common) for m in (x, y)))
    xs, ys = (tuple(point[axis] for point in points) for axis in (0, 1))
    if len(points) < _FEWEST_POINTS or len(set(xs)) < 2 or len(set(ys)) < 2:
        return Evidence(OPEN, f"{len(points)} rows are too few for a correlation of {test.x} and {test.y}")
    found = spearmanr(xs, ys)
    statistic, p = float(found.statistic), float(found.pvalue)
    if len(points) <= _EXACT_POINTS:
        p = _exact(xs, ys, statistic)
    reason = f"rank correlation of {test.x} and {test.y} {statistic:.3f}, p = {p:.2g}, {len(points)} rows"
    metric, values = f"{test.x}, {test.y}", (*xs, *ys)
    if p > 1 - CONFIDENCE:
        return Evidence(OPEN, reason + ": within noise", p, metric, values)
    return Evidence(HOLDS if statistic > 0 else FAILS, reason, p, metric, values)


def _exact(xs: Sequence[float], ys: Sequence[float], statistic: float) -> float:
    """The share of all orders of ``ys`` whose rank correlation is as large, either way."""
    from itertools import permutations

    from scipy.stats import rankdata

    first, second = (rankdata(values) - (len(xs) + 1) / 2 for values in (xs, ys))
    orders = np.array(list(permutations(second)))
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.mean(np.abs(orders @ first) / scale >= abs(statistic) - 1e-9))


@evidence_for.register
def _smaller(test: Smaller, lines: Sequence[Line]) -> Evidence:
    less, more = (column_means(lines, row, test.metric) for row in (test.less, test.more))
    columns = [column for column in less if column in more]
    if not columns:
        return Evidence(OPEN, f"{test.metric} is not known of both {test.less} and {test.more}")
    ratio = sum(less[column] for column in columns) / sum(more[column] for column in columns)
    holds = all(less[column] < more[column] for column in columns)
    reason = f"{test.metric}: {test.less} has {ratio:.3g} times that of {test.more}"
    return Evidence(HOLDS if holds else FAILS, reason)


@evidence_for.register
def _near(test: Near, lines: Sequence[Line]) -> Evidence:
    values = list(subject_means(lines, test.row, test.metric).values())
    if not values:
        return Evidence(OPEN, f"{test.metric} was not measured of {test.row}")
    return _within(
        [value - test.value for value in values],
        test.margin,
        test.metric,
        f"{test.metric} of {test.row} minus {test.value:g}",
    )


@evidence_for.register
def _alike(test: Alike, lines: Sequence[Line]) -> Evidence:
    values, _ = _differences(test.first, test.second, test.metric, lines)
    if not values:
        return Evidence(OPEN, f"{test.metric} was not measured of both {test.first} and {test.second}")
    return _within(values, test.margin, test.metric, f"{test.metric}: {test.first} minus {test.second}")


def _within(values: Sequence[float], margin: float, metric: str, what: str) -> Evidence:
    """Two one-sided tests: the mean is within ``margin`` of 0, or beyond it, or neither can be told."""
    p = max(_one_sided(values, -margin), _one_sided([-value for value in values], -margin))
    mean, width = interval(values)
    reason = f"{what} = {_with_error(mean, width)}; within {margin:g}: p = {p:.2g} by two one-sided tests"
    if p <= (1 - CONFIDENCE) / 2:
        return Evidence(HOLDS, reason, min(1.0, 2 * p), metric, tuple(values))
    beyond = min(_one_sided(values, margin), _one_sided([-value for value in values], margin))
    if beyond <= (1 - CONFIDENCE) / 2:
        return Evidence(FAILS, reason, min(1.0, 2 * beyond), metric, tuple(values))
    return Evidence(OPEN, reason + ": within noise", min(1.0, 2 * min(p, beyond)), metric, tuple(values))


def _side(mean: float, width: float) -> str:
    if abs(mean) <= width:
        return OPEN
    return HOLDS if mean > 0 else FAILS


def _with_error(mean: float, width: float) -> str:
    if math.isinf(width):
        return f"{mean:+.4f} (one value alone: no error bar)"
    text = f"{mean:+.4f} ± {width:.4f} ({CONFIDENCE:.0%})"
    return text + (", within noise" if abs(mean) <= width else "")
