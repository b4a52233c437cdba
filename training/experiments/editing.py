"""Figures 5, 9 and 14: one picture learnt, and edited by its prompt; how alike the results are."""

from __future__ import annotations

from paramerge.training.experiments.dataset import Dataset
from paramerge.training.experiments.parts import adapted, base_cells, cells_of, limited, subjects_of, trained
from paramerge.training.experiments.plan import Budget, Cell, Experiment
from paramerge.training.experiments.verdict import Claim, Greater, Trend

__all__ = ["EDITING"]

_SVDIFF, _BASE = "SVDiff", "base"


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    cells = []
    for subject in subjects_of(data, budget):
        prompts = limited(data.prompts.editing, budget)
        cells += base_cells(_BASE, subject, prompts, budget.edits)
        for rank in budget.ranks:
            training = trained("para", rank, subject, budget, pictures=1)
            cells += cells_of(_row(rank), adapted(training), subject, prompts, budget.edits)
        other = trained("svdiff", 1, subject, budget, pictures=1)
        cells += cells_of(_SVDIFF, adapted(other), subject, prompts, budget.edits)
    return cells


def _row(rank: int) -> str:
    return f"PaRa r={rank}"


def _claims(budget: Budget) -> list[Claim]:
    middle = _row(8 if 8 in budget.ranks else budget.ranks[-1])
    return [
        Claim(
            "after one picture, PaRa's edits are more alike than SVDiff's (a higher SSIM over seeds)",
            "Figure 5, section 4.3",
            Greater("diversity", middle, _SVDIFF),
        ),
        Claim("and than the base model's pictures", "section 4.1", Greater("diversity", middle, _BASE)),
        Claim(
            "the higher the rank, the more alike they are",
            "section 4.5, Appendix F",
            Trend("diversity", tuple(map(_row, budget.ranks))),
        ),
        Claim(
            "the higher the rank, the less the text changes them",
            "section 4.5, Appendix D",
            Trend("text", tuple(map(_row, budget.ranks)), rising=False),
        ),
    ]


EDITING = Experiment(
    "editing",
    "Editing after one picture, across ranks: SSIM over seeds",
    "Figures 5, 9 and 14",
    _build,
    _claims,
)
