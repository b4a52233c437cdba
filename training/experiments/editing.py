"""Figures 5, 9 and 14: one picture learnt, and edited by its prompt; how alike the results are."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from paramerge.training.experiments.claims import Alike, Claim, Greater, Trend
from paramerge.training.experiments.dataset import Dataset
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.parts import adapted, base_cells, cells_of, held_out, trained
from paramerge.training.experiments.places import picture_job
from paramerge.training.experiments.plan import Budget, Cell, Experiment, Plan

__all__ = ["EDITING"]

_SVDIFF, _BASE = "SVDiff", "base"
_LEARNT = 1
"""Pictures of each subject that are learnt, and that edits are compared with."""
_FEWEST_PROMPTS = 2
"""Prompts between which one sees what a text changes."""
_MINIMAL = 0.05
"""A difference of SSIM below this is called minimal."""


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    cells = []
    for subject in held_out(data, budget):
        prompts = data.prompts.editing[: max(_FEWEST_PROMPTS, budget.prompts)]
        cells += base_cells(_BASE, subject, prompts, budget.edits)
        for rank in budget.ranks:
            training = trained("para", rank, subject, budget, pictures=_LEARNT)
            cells += cells_of(_row(rank), adapted(training), subject, prompts, budget.edits)
        other = trained("svdiff", 1, subject, budget, pictures=_LEARNT)
        cells += cells_of(_SVDIFF, adapted(other), subject, prompts, budget.edits)
    return [replace(cell, learnt=_LEARNT) for cell in cells]


def _row(rank: int) -> str:
    return f"PaRa r={rank}"


def _derive(lines: list[Line], plan: Plan, output: Path) -> list[Line]:
    """``changed by the text``: how far apart the pictures of one seed are under a subject's prompts."""
    from paramerge.training.evaluation.sets import read_pictures

    by_row: dict[tuple[str, str], list[Cell]] = {}
    for cell in plan.cells:
        by_row.setdefault((cell.row, cell.references.name), []).append(cell)
    derived = []
    for (row, subject), cells in by_row.items():
        jobs = [picture_job(plan, cell, output / plan.experiment.name) for cell in cells]
        for run, seeds in enumerate(plan.seeds(cells[0].count)):
            sets = [read_pictures([job.files[job.seeds.index(seed)] for seed in seeds]) for job in jobs]
            apart = [_distance(first, second) for first, second in combinations(sets, 2)]
            if apart:
                metrics = {"changed by the text": sum(apart) / len(apart)}
                derived.append(Line(row, f"{subject}: all prompts", run, metrics, cells[0].tuning))
    return derived


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """The mean over pictures of the root mean square difference of pixels, 0 to 1."""
    difference = ((first.astype(np.float64) - second) / 255) ** 2
    return float(np.mean(np.sqrt(difference.mean(axis=tuple(range(1, difference.ndim))))))


def _claims(budget: Budget) -> list[Claim]:
    low, middle = _row(budget.ranks[0]), _row(8 if 8 in budget.ranks else budget.ranks[-1])
    return [
        Claim(
            "after one picture, PaRa's edits are more alike than SVDiff's (a higher SSIM over seeds)",
            "Figure 5, section 4.3",
            Greater("diversity", middle, _SVDIFF),
        ),
        Claim(
            "PaRa's edits deviate less from the picture that was learnt than SVDiff's",
            "section 4.3",
            Greater("image", middle, _SVDIFF),
        ),
        Claim(
            "they are more alike than the base model's pictures of the kind of thing",
            "section 4.1",
            Greater("diversity", middle, _BASE),
        ),
        Claim(
            f"from {low} to {middle} there are minimal differences (of SSIM, below {_MINIMAL:g})",
            "Figure 9, Appendix D",
            Alike("diversity", low, middle, _MINIMAL),
        ),
        Claim(
            "the higher the rank, the more alike they are",
            "section 4.5, Appendix F",
            Trend("diversity", tuple(map(_row, budget.ranks))),
        ),
        Claim(
            "the higher the rank, the less the text changes them (pictures of one seed under two prompts)",
            "section 4.5, Appendix D",
            Trend("changed by the text", tuple(map(_row, budget.ranks)), rising=False),
        ),
    ]


EDITING = Experiment(
    "editing",
    "Editing after one picture, across ranks: SSIM over seeds",
    "Figures 5, 9 and 14",
    _build,
    _claims,
    _derive,
)
