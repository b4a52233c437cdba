"""Learning rates: each method at several, on the subjects for tuning, which no verdict uses.

The paper does not say its rates. Those of a budget are compared here with some around them; what counts is
the mean of the image and the text score, as a rate that is too low leaves the first low and one that is too
high spoils both.
"""

from __future__ import annotations

from pathlib import Path

from paramerge.training.config import METHODS
from paramerge.training.experiments.dataset import Dataset
from paramerge.training.experiments.parts import SETTINGS, adapted, cells_of, limited, subjects_of, trained
from paramerge.training.experiments.plan import Budget, Cell, Experiment, Plan
from paramerge.training.experiments.table2 import METHODS_COMPARED
from paramerge.training.experiments.verdict import Line

__all__ = ["RATES"]

_RANKS = {"para": 8, "lora": 8, "oft": 4, "lokr": 4, "loha": 4}


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    cells = []
    for subject in subjects_of(data, budget)[: max(1, budget.tuning_subjects)]:
        prompts = (data.prompts.plain, *limited(data.prompts.alignment, budget))
        for method in _methods():
            for rate in _rates(method, budget):
                settings = SETTINGS.get(method, {}) | {"learning_rate": rate}
                training = trained(method, _RANKS.get(method, 1), subject, budget, **settings)
                row, word = _row(method, rate), training.word
                cells += cells_of(row, adapted(training), subject, prompts, budget.figures, word)
    return cells


def _methods() -> list[str]:
    return list(dict.fromkeys(method for method, _, _ in METHODS_COMPARED.values()))


def _rates(method: str, budget: Budget) -> list[float]:
    middle = dict(budget.rates).get(method, METHODS[method])
    return [float(f"{middle * factor:.3g}") for factor in budget.rate_factors]


def _row(method: str, rate: float) -> str:
    return f"{method}, {rate:g}"


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
)
