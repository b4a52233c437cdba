"""Learning rates: each method at several, on the subjects for tuning, which no verdict uses.

The paper does not say its rates. The rates of a budget are compared here with some around them; the measure
is the mean of the image and the text score, as a rate that is too low leaves the first low and one that is
too high spoils both.
"""

from __future__ import annotations

from pathlib import Path

from paramerge.training.config import METHODS
from paramerge.training.experiments.dataset import Dataset
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.parts import (
    SETTINGS,
    adapted,
    cells_of,
    limited,
    rate_name,
    rate_of,
    subjects_of,
    trained,
)
from paramerge.training.experiments.plan import Budget, Cell, Experiment, Plan
from paramerge.training.experiments.table2 import METHODS_COMPARED

__all__ = ["RATES", "rates_of", "split_row"]


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    cells = []
    for subject in subjects_of(data, budget)[: max(1, budget.tuning_subjects)]:
        prompts = (data.prompts.plain, *limited(data.prompts.alignment, budget))
        for method, rank, strength in _compared():
            name = rate_name(method, strength)
            for factor in budget.rate_factors:
                rate = float(f"{rates_of(budget)[name] * factor:.3g}")
                settings = SETTINGS.get(method, {}) | {"learning_rate": rate}
                training = trained(method, rank, subject, budget, **settings)
                row, variant = f"{name}, {rate:g}", adapted(training, strength=strength)
                cells += cells_of(row, variant, subject, prompts, budget.figures, training.word)
    return cells


def rates_of(budget: Budget) -> dict[str, float]:
    """Every learning rate by its name: the trainer's, the budget's, and those of all that is compared."""
    named = {
        rate_name(method, strength): rate_of(method, budget, strength) or METHODS[method]
        for method, _, strength in _compared()
    }
    return METHODS | dict(budget.rates) | named


def split_row(row: str) -> tuple[str, float]:
    """A row's name of a rate, and the rate itself."""
    name, _, rate = row.rpartition(", ")
    return name, float(rate)


def _compared() -> list[tuple[str, int, float]]:
    """Table 2's methods once each, of several ranks the last; methods of another strength alone."""
    kinds = {(method, strength): rank for method, rank, strength in METHODS_COMPARED.values()}
    return [(method, rank, strength) for (method, strength), rank in kinds.items()]


def _derive(lines: list[Line], plan: Plan, output: Path) -> list[Line]:
    """``both``: the mean of the image and the text score."""
    derived = []
    for line in lines:
        scores = [line.metrics[name] for name in ("image", "text") if name in line.metrics]
        if len(scores) == 2:
            derived.append(Line(line.row, line.column, line.run, {"both": sum(scores) / 2}))
    return derived


RATES = Experiment(
    "rates",
    "Each method at several learning rates, on the subjects for tuning",
    "not in the paper",
    _build,
    lambda budget: [],
    _derive,
    figure="rates",
    diversity=False,
    held_out=False,
)
