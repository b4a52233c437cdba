"""The results that verdicts are made of: a line for each cell and run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Line", "column_means", "means_by", "subject_means"]


@dataclass(frozen=True)
class Line:
    """One result: a cell in one run.

    Attributes
    ----------
    metrics:
        Means over the cell's pictures or pairs.
    tuning:
        Whether the column was for choosing, and is no evidence.
    plain:
        Whether the prompt is the plain one, of Table 2.
    """

    row: str
    column: str
    run: int
    metrics: Mapping[str, float]
    tuning: bool = False
    plain: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "row": self.row,
            "column": self.column,
            "run": self.run,
            "tuning": self.tuning,
            "plain": self.plain,
            "metrics": dict(self.metrics),
        }


def column_means(lines: Sequence[Line], row: str, metric: str) -> dict[str, float]:
    """The mean over runs of a row's metric, by column."""
    return means_by(lines, row, metric, lambda line: line.column)


def subject_means(lines: Sequence[Line], row: str, metric: str) -> dict[str, float]:
    """The mean over prompts and runs of a row's metric, by subject: a column's name begins with it."""
    return means_by(lines, row, metric, lambda line: line.column.partition(": ")[0])


def means_by(lines: Sequence[Line], row: str, metric: str, key: Callable[[Line], Any]) -> dict[Any, float]:
    """The mean of a row's metric over the lines that have the same ``key``."""
    found: dict[Any, list[float]] = {}
    for line in lines:
        if line.row == row and metric in line.metrics:
            found.setdefault(key(line), []).append(line.metrics[metric])
    return {name: math.fsum(values) / len(values) for name, values in found.items()}
