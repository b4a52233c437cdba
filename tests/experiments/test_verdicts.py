"""Verdicts on made-up results whose truth is known, against SciPy's own tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from paramerge.training.experiments.claims import (
    Alike,
    Claim,
    Correlated,
    Greater,
    Near,
    Prompted,
    Smaller,
    Test,
    Trend,
)
from paramerge.training.experiments.evidence import interval
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.verdict import holm, judge, judge_all


def lines_of(values: dict[str, Sequence[Sequence[float]]], metric: str = "image") -> list[Line]:
    """A line for each row, subject and run: ``values[row][subject][run]``, on two prompts each."""
    return [
        Line(row, f"subject{number}: {prompt}", run, {metric: value})
        for row, subjects in values.items()
        for number, runs in enumerate(subjects)
        for prompt in ("p", "q")
        for run, value in enumerate(runs)
    ]


def verdict(test: Test, lines: Sequence[Line]) -> tuple[str, str]:
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


@pytest.mark.parametrize(
    ("prompts", "wanted"), [("all", "cannot be told"), ("plain", "holds"), ("others", "does not hold")]
)
def test_prompts_that_a_claim_is_about(prompts: Prompted, wanted: str) -> None:
    """Ahead on the plain prompt and behind on the other: each claim is judged on its own."""
    rng = np.random.default_rng(0)
    lines = [
        Line(
            row,
            f"s{subject}: {prompt}",
            0,
            {"image": sign * plain_sign + 0.1 * rng.standard_normal()},
            plain=plain,
        )
        for row, sign in (("a", 1), ("b", -1))
        for subject in range(8)
        for prompt, plain, plain_sign in (("p", True, 1), ("q", False, -1))
        for noise in rng.standard_normal(1)
    ]
    assert verdict(Greater("image", "a", "b", prompts), lines)[0] == wanted


def test_columns_are_no_points_of_a_correlation() -> None:
    """Four rows on many subjects are four points, whose best order has p = 1/12."""
    lines = [
        Line(f"r{row}", f"s{subject}: p", 0, {"x": float(row), "y": row + 0.01 * subject})
        for row in range(4)
        for subject in range(30)
    ]
    found, reason = verdict(Correlated("x", "y"), lines)
    assert found == "cannot be told" and "p = 0.083, 4 rows" in reason


@pytest.mark.parametrize("points", [5, 7])
def test_exact_correlations_are_scipys(points: int) -> None:
    rng = np.random.default_rng(points)
    xs, ys = rng.standard_normal((2, points))
    lines = [Line(f"r{i}", "s: p", 0, {"x": x, "y": y}) for i, (x, y) in enumerate(zip(xs, ys, strict=True))]
    statistic = stats.spearmanr(xs, ys).statistic
    wanted = stats.permutation_test(
        (xs,), lambda x: stats.spearmanr(x, ys).statistic, permutation_type="pairings", n_resamples=np.inf
    ).pvalue
    assert judge(Claim("", "", Correlated("x", "y")), lines).p == pytest.approx(wanted, abs=1e-9), statistic


@pytest.mark.parametrize(
    ("mean", "wanted"), [(1.0, "holds"), (0.8, "does not hold"), (0.95, "cannot be told")]
)
def test_equality_is_claimed_within_a_margin(mean: float, wanted: str) -> None:
    lines = lines_of({"a": noisy(mean, 3), "b": noisy(1.0, 4)})
    assert verdict(Near("image", "a", 1.0, 0.05), lines)[0] == wanted
    assert verdict(Alike("image", "a", "b", 0.05), lines)[0] == wanted


def test_the_same_numbers_count_once() -> None:
    """A second name for the same rows, as of a method whose best steps are its last."""
    lines = lines_of({"a": noisy(0.6, 1), "b": noisy(0.5, 2)})
    again = [Line(f"{x.row}, best", x.column, x.run, x.metrics) for x in lines]
    claims = [Claim(text, "", Greater("image", *rows)) for text, rows in
              (("first", ("a", "b")), ("second", ("a, best", "b, best")), ("third", ("b", "a")))]  # fmt: skip
    assert [found.same_as for found in judge_all(claims, lines + again)] == ["", "first", ""]


def test_holms_correction() -> None:
    """By hand: 0.01 * 4, then 0.02 * 3 and 0.03 * 2, never below the one before."""
    found = holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.5})
    assert found == pytest.approx({"b": 0.04, "c": 0.06, "a": 0.06, "d": 0.5})


def null_lines(seed: int, rows: int = 5, subjects: int = 7) -> list[Line]:
    """Results without any truth: each row, subject and prompt differs from the others by chance alone."""
    rng = np.random.default_rng(seed)
    subject, cell = rng.standard_normal((2, subjects)), rng.standard_normal((2, rows, subjects))
    row = rng.standard_normal((2, rows))  # of the metrics of a correlation: rows differ, and not together
    lines = []
    for r in range(rows):
        for s in range(subjects):
            for prompt in ("p", "q"):
                x, y = (subject[m, s] + cell[m, r, s] + 0.5 * rng.standard_normal() for m in (0, 1))
                metrics = {"image": float(x), "x": float(x + row[0, r]), "y": float(y + row[1, r])}
                lines.append(Line(f"r{r}", f"s{s}: {prompt}", 0, metrics, plain=prompt == "p"))
    return lines


NULL = (
    Greater("image", "r0", "r1"),
    Greater("image", "r0", "r1", "plain"),
    Trend("image", ("r0", "r1", "r2", "r3")),
    Correlated("x", "y"),
)


@pytest.mark.parametrize(
    "test", NULL, ids=lambda test: f"{type(test).__name__}-{getattr(test, 'prompts', '')}"
)
def test_noise_is_taken_for_a_finding_as_rarely_as_is_said(test: Test) -> None:
    """At a nominal 5 percent: within the binomial interval of 600 null results."""
    count = 600
    found = sum(verdict(test, null_lines(seed))[0] != "cannot be told" for seed in range(count))
    low, high = stats.binom(count, 0.05).interval(0.999)
    assert found <= high
    assert found >= low or isinstance(test, Correlated | Trend)  # their p take few values


def test_equality_is_rarely_claimed_where_it_is_not() -> None:
    """Rows that differ by the whole margin."""
    wrong = sum(
        verdict(
            Alike("image", "a", "b", 0.01), lines_of({"a": noisy(0.01, 2 * i), "b": noisy(0, 2 * i + 1)})
        )[0]
        == "holds"
        for i in range(400)
    )
    assert wrong <= stats.binom(400, 0.05).ppf(0.999)
