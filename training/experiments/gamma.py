"""Figure 8: the rank boundary gamma, swept at a low and at high ranks."""

from __future__ import annotations

from paramerge.training.experiments.claims import Claim, Greater, Trend
from paramerge.training.experiments.dataset import Dataset
from paramerge.training.experiments.parts import adapted, cells_of, held_out, limited, trained
from paramerge.training.experiments.plan import Budget, Cell, Experiment

__all__ = ["GAMMA"]


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    cells = []
    for subject in held_out(data, budget):
        for rank in _ranks(budget):
            for gamma in _gammas(rank, budget):
                training = trained("para", rank, subject, budget, gamma=gamma)
                prompts = limited(data.prompts.diversity, budget)
                cells += cells_of(_row(rank, gamma), adapted(training), subject, prompts, budget.figures)
    return cells


def _gammas(rank: int, budget: Budget) -> tuple[float | None, ...]:
    """All at the high rank; at the low one, where only the tightest binds, that and none."""
    if rank != budget.ranks[-1]:
        return None, min(gamma for gamma in budget.gammas if gamma is not None)
    return budget.gammas


def _ranks(budget: Budget) -> tuple[int, int]:
    return budget.ranks[0], budget.ranks[-1]


def _row(rank: int, gamma: float | None) -> str:
    return f"PaRa r={rank}, " + ("no boundary" if gamma is None else f"gamma {gamma:g}")


def _claims(budget: Budget) -> list[Claim]:
    low, high = _ranks(budget)
    bounded = [gamma for gamma in budget.gammas if gamma is not None]
    chosen = min(bounded, key=lambda gamma: abs(gamma - 1 / 40))
    return [
        Claim(
            "at a high rank, gamma near 1/40 keeps pictures true to their text",
            "Figure 8, Appendix C",
            Greater("text", _row(high, chosen), _row(high, None)),
        ),
        Claim(
            "the tighter the boundary at a high rank, the better they fit their text",
            "Figure 8",
            Trend("text", tuple(_row(high, gamma) for gamma in budget.gammas)),
        ),
        Claim(
            "at a low rank without a boundary pictures fit their text better than at a high one",
            "Appendix C",
            Greater("text", _row(low, None), _row(high, None)),
        ),
    ]


GAMMA = Experiment("gamma", "The rank boundary at low and high ranks", "Figure 8", _build, _claims)
