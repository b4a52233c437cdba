"""The parts of which the experiments are made: trainings with a budget's settings, rows, cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from paramerge.training.experiments.dataset import Dataset, Subject
from paramerge.training.experiments.plan import Budget, Cell, Training, Use, Variant

__all__ = [
    "BEST",
    "SETTINGS",
    "adapted",
    "base_cells",
    "cells_of",
    "equal_steps",
    "held_out",
    "limited",
    "rate_name",
    "rate_of",
    "stops_of",
    "subjects_of",
    "trained",
]

BEST = "best steps"
"""The end of a row's name where a method has its best number of steps."""
SETTINGS: dict[str, dict[str, Any]] = {
    # its authors put it on attention alone, and PEFT's for convolutions does not know their padding
    "oft": {"subset": "attention"},
}
"""Settings of a method beside the budget's."""


def stops_of(method: str, budget: Budget) -> tuple[int, ...]:
    """The steps after which an adapter of ``method`` is kept."""
    return budget.para_stops if method == "para" else budget.other_stops


def equal_steps(budget: Budget) -> int:
    """The largest number of steps that all methods are kept at."""
    return max(set(budget.para_stops) & set(budget.other_stops))


def rate_name(method: str, strength: float = 1.0) -> str:
    """The name of a learning rate in a budget: a method that is overdriven afterwards has a lower one."""
    return method if strength == 1 else f"{method}, scale {strength:g}"


def rate_of(method: str, budget: Budget, strength: float = 1.0) -> float | None:
    """The budget's learning rate for ``method`` at ``strength``, or else for ``method``; None for neither."""
    rates = dict(budget.rates)
    return rates.get(rate_name(method, strength), rates.get(method))


def trained(
    method: str,
    rank: int,
    subject: Subject,
    budget: Budget,
    *,
    strength: float = 1.0,
    stops: Sequence[int] | None = None,
    pictures: int | None = None,
    **settings: object,
) -> Training:
    """A training with the budget's settings, for an adapter that will be applied with ``strength``.

    ``settings`` of the trainer's configuration win.
    """
    given: dict[str, object] = {
        "batch_size": budget.batch_size,
        "mixed_precision": budget.mixed_precision,
    }
    if (rate := rate_of(method, budget, strength)) is not None:
        given["learning_rate"] = rate
    if method == "para":
        given["gamma"] = budget.gamma
    given |= settings
    return Training(
        method,
        rank,
        subject,
        tuple(stops or stops_of(method, budget)),
        tuple(sorted(given.items())),
        pictures,
    )


def adapted(training: Training, steps: int | None = None, strength: float = 1.0) -> Variant:
    """The model with one adapter, as it was after ``steps`` (by default the last stop)."""
    return Variant((Use(training, steps or training.stops[-1], strength),))


def cells_of(
    row: str,
    variant: Variant,
    subject: Subject,
    templates: Iterable[str],
    count: int,
    word: str | None = None,
    tuning: bool = False,
) -> list[Cell]:
    """A cell for each prompt; the text score reads the subject's kind in place of its word."""
    return [
        Cell(
            row,
            f"{subject.name}: {template.format(subject='[V]')}",
            variant,
            template.format(subject=subject.word if word is None else word),
            template.format(subject=subject.kind),
            subject,
            count,
            tuning,
        )
        for template in templates
    ]


def base_cells(row: str, subject: Subject, templates: Iterable[str], count: int) -> list[Cell]:
    """The model without an adapter: its prompts say the subject's kind, as it does not know the word."""
    return cells_of(row, Variant(), subject, templates, count, subject.kind)


def limited(templates: Sequence[str], budget: Budget) -> tuple[str, ...]:
    """At most as many prompts as the budget has."""
    return tuple(templates[: budget.prompts])


def subjects_of(data: Dataset, budget: Budget) -> tuple[Subject, ...]:
    """The subjects of the budget, those for tuning first."""
    return data.first(budget.subjects)


def held_out(data: Dataset, budget: Budget) -> tuple[Subject, ...]:
    """The subjects of the budget that nothing is chosen by: evidence for verdicts."""
    return data.first(budget.subjects)[budget.tuning_subjects :]
