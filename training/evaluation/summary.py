"""Scores summed up: a mean and an error bar over runs for each label and metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paramerge.training.evaluation.measuring import METRICS, SetScores

__all__ = ["Summary", "Value", "summed_up", "value_of"]


@dataclass(frozen=True)
class Value:
    """A mean over runs.

    Attributes
    ----------
    deviation:
        The standard deviation of the runs (n - 1 in the denominator), the paper's kind of error bar; None
        for a single run, which has none.
    runs:
        The means of the runs themselves.
    """

    mean: float
    deviation: float | None
    runs: tuple[float, ...]

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ± {self.deviation:.4f}"


@dataclass(frozen=True)
class Summary:
    """The row of a table: the result of a label's runs, by metric."""

    label: str
    pictures: int
    values: Mapping[str, Value]

    def as_dict(self, models: Mapping[str, str]) -> dict[str, object]:
        """Plain values for JSON; each metric names the model that computed it."""
        return {
            "label": self.label,
            "pictures": self.pictures,
            "metrics": {
                metric: {
                    "model": models[metric],
                    "mean": value.mean,
                    "deviation": value.deviation,
                    "runs": list(value.runs),
                }
                for metric, value in self.values.items()
            },
        }


def value_of(runs: Sequence[float]) -> Value:
    """The mean and deviation of one number a run."""
    deviation = float(np.std(runs, ddof=1)) if len(runs) > 1 else None
    return Value(math.fsum(runs) / len(runs), deviation, tuple(runs))


def summed_up(scores: Sequence[SetScores]) -> list[Summary]:
    """A row for each label, in the order of their first appearance."""
    rows = []
    for label in dict.fromkeys(each.label for each in scores):
        own = sorted((each for each in scores if each.label == label), key=lambda each: each.run)
        values = {}
        for metric in METRICS:
            means = [mean for each in own if (mean := each.mean(metric)) is not None]
            if means:
                values[metric] = value_of(means)
        rows.append(Summary(label, sum(each.pictures for each in own), values))
    return rows
