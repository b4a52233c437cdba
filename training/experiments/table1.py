"""Table 1: pictures of a model with a PaRa are less diverse than its own, and less so at higher ranks."""

from __future__ import annotations

from paramerge.training.experiments.claims import Claim, Greater
from paramerge.training.experiments.dataset import Dataset
from paramerge.training.experiments.parts import adapted, base_cells, cells_of, held_out, limited, trained
from paramerge.training.experiments.plan import Budget, Cell, Experiment

__all__ = ["TABLE1"]

_BASE, _RANKS = "base", (4, 8)


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    cells = []
    for subject in held_out(data, budget):
        prompts = limited(data.prompts.diversity, budget)
        cells += base_cells(_BASE, subject, prompts, budget.count)
        for rank in _RANKS:
            training = trained("para", rank, subject, budget)
            cells += cells_of(_row(rank), adapted(training), subject, prompts, budget.count)
    return cells


def _row(rank: int) -> str:
    return f"PaRa r={rank}"


def _claims(budget: Budget) -> list[Claim]:
    low, high = (_row(rank) for rank in _RANKS)
    where = "Table 1"
    return [
        Claim(
            "with a PaRa of rank 4 pictures are less diverse (a higher SSIM)",
            where,
            Greater("diversity", low, _BASE),
        ),
        Claim("with rank 8, too", where, Greater("diversity", high, _BASE)),
        Claim("rank 8 leaves less diversity than rank 4", where, Greater("diversity", high, low)),
    ]


TABLE1 = Experiment(
    "table1", "Diversity of the base model and of PaRa at ranks 4 and 8", "Table 1", _build, _claims
)
