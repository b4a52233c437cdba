"""Verdicts on made-up results whose truth is known, against SciPy's own tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from paramerge.training.experiments.verdict import (
    Claim,
    Correlated,
    Greater,
    Line,
    Smaller,
    Trend,
    interval,
    judge,
)


def lines_of(values: dict[str, Sequence[Sequence[float]]], metric: str = "image") -> list[Line]:
    """A line for each row, subject and run: ``values[row][subject][run]``, on two prompts each."""
    return [
        Line(row, f"subject{number}: {prompt}", run, {metric: value})
        for row, subjects in values.items()
        for number, runs in enumerate(subjects)
        for prompt in ("p", "q")
        for run, value in enumerate(runs)
    ]


def verdict(test: Greater | Trend | Correlated | Smaller, lines: Sequence[Line]) -> tuple[str, str]:
    found = judge(Claim("it is so", "Table 0", test), lines)
    return found.verdict, found.reason


def noisy(mean: float, seed: int, subjects: int = 8, spread: float = 0.01) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return (mean + spread * rng.standard_normal((subjects, 3))).tolist()


@pytest.mark.parametrize(
    ("better", "worse", "wanted"),
    [(0.6, 0.5, "holds"), (0.5, 0.6, "does not hold"), (0.5, 0.5, "cannot be told")],
)
def test_rows_are_compared_over_subjects(better: float, worse: float, wanted: str) -> None:
    lines = lines_of({"a": noisy(better, 1), "b": noisy(worse, 2)})
    found, reason = verdict(Greater("image", "a", "b"), lines)
    assert found == wanted
    assert ("within noise" in reason) == (wanted == "cannot be told")
    assert "subjects" in reason


def test_the_interval_is_scipys() -> None:
    values = [0.1, 0.3, 0.25, -0.1]
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, width = interval(values)
    assert (mean - width, mean + width) == pytest.approx((wanted.low, wanted.high))
    assert interval([0.2]) == (0.2, float("inf"))


def test_prompts_and_runs_of_one_subject_are_no_evidence_for_others() -> None:
    """Two subjects that disagree, each measured without noise and often: nothing can be told."""
    lines = lines_of({"a": [[0.9] * 50, [0.1] * 50], "b": [[0.5] * 50, [0.6] * 50]})
    assert verdict(Greater("image", "a", "b"), lines)[0] == "cannot be told"


def test_of_one_subject_the_runs_tell() -> None:
    lines = lines_of({"a": [[0.61, 0.6, 0.62]], "b": [[0.5, 0.5, 0.51]]})
    found, reason = verdict(Greater("image", "a", "b"), lines)
    assert found == "holds"
    assert "runs of one subject" in reason
    alone = lines_of({"a": [[0.6]], "b": [[0.5]]})
    assert verdict(Greater("image", "a", "b"), alone)[0] == "cannot be told"
    # what has no noise of its own, such as one training's time, is one value however many runs
    same = lines_of({"a": [[0.6, 0.6]], "b": [[0.5, 0.5]]})
    assert verdict(Greater("image", "a", "b"), same)[0] == "cannot be told"


def test_columns_for_tuning_do_not_count() -> None:
    lines = lines_of({"a": noisy(0.6, 1), "b": noisy(0.5, 2)})
    tuned = [Line(x.row, "tuned: p", x.run, {"image": -9.0 if x.row == "a" else 9.0}, True) for x in lines]
    assert verdict(Greater("image", "a", "b"), lines + tuned)[0] == "holds"
    assert verdict(Greater("image", "a", "b"), tuned)[0] == "cannot be told"


@pytest.mark.parametrize(
    ("slope", "wanted"), [(0.1, "holds"), (-0.1, "does not hold"), (0, "cannot be told")]
)
@pytest.mark.parametrize("rising", [True, False])
def test_trends_are_pages(slope: float, wanted: str, rising: bool) -> None:
    rows = ("r1", "r2", "r3", "r4")
    sign = 1 if rising else -1
    values = {row: noisy(sign * slope * place, place, subjects=5) for place, row in enumerate(rows)}
    found, reason = verdict(Trend("image", rows, rising), lines_of(values))
    assert found == wanted
    data = np.array([[np.mean(values[row][subject]) for row in rows] for subject in range(5)])
    wanted_p = stats.page_trend_test(data if rising else data[:, ::-1]).pvalue
    assert f"p = {wanted_p:.2g} by Page's test" in reason


def test_two_rows_are_a_difference_and_no_trend() -> None:
    lines = lines_of({"a": noisy(0.5, 1), "b": noisy(0.6, 2)})
    assert verdict(Trend("image", ("a", "b")), lines)[0] == "holds"
    assert verdict(Trend("image", ("a", "b"), rising=False), lines)[0] == "does not hold"


@pytest.mark.parametrize(
    ("relation", "wanted"),
    [(lambda x: x**2, "holds"), (lambda x: -x, "does not hold"), (lambda x: (x * 7) % 5, "cannot be told")],
)
def test_correlations_are_spearmans(relation: Callable[[int], float], wanted: str) -> None:
    lines = [Line(f"row{x}", "s: p", 0, {"x": float(x), "y": float(relation(x))}) for x in range(10)]
    found, reason = verdict(Correlated("x", "y"), lines)
    assert found == wanted
    statistic = stats.spearmanr(range(10), [relation(x) for x in range(10)]).statistic
    assert f"{statistic:.3f}" in reason
    assert verdict(Correlated("x", "y"), lines[:3])[0] == "cannot be told"


def test_counts_have_no_noise() -> None:
    lines = lines_of({"a": [[10.0]], "b": [[40.0]]}, "parameters")
    assert verdict(Smaller("parameters", "a", "b"), lines)[0] == "holds"
    found, reason = verdict(Smaller("parameters", "b", "a"), lines)
    assert found == "does not hold"
    assert "4 times" in reason
    assert verdict(Smaller("parameters", "a", "c"), lines)[0] == "cannot be told"


def test_noise_is_rarely_taken_for_a_finding() -> None:
    """At 95% about one in twenty comparisons of equal rows is wrong: many more would be a defect."""
    wrong = sum(
        verdict(Greater("image", "a", "b"), lines_of({"a": noisy(0, 2 * i), "b": noisy(0, 2 * i + 1)}))[0]
        != "cannot be told"
        for i in range(400)
    )
    assert 5 <= wrong <= 40
