"""Table 3 and Figure 7: which layers are trained; how large the files are and how the pictures fit."""

from __future__ import annotations

from paramerge.models.subsets import SUBSETS
from paramerge.training.experiments.claims import Claim, Correlated, Greater, Smaller
from paramerge.training.experiments.dataset import Dataset
from paramerge.training.experiments.parts import adapted, cells_of, held_out, limited, trained
from paramerge.training.experiments.plan import Budget, Cell, Experiment

__all__ = ["SUBSETS_EXPERIMENT"]

_RANK = 16
_PAPER = tuple(name for name, entry in SUBSETS.items() if entry.label and name != "ex-sa-table")
"""The subsets of the paper's table; its ExSA row measures the same as its ExCA row."""


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    cells = []
    for subject in held_out(data, budget)[: max(1, budget.subjects // 2)]:
        for name in _PAPER:
            for method, label in (("para", "PaRa"), ("lora", "LoRA")):
                training = trained(method, _RANK, subject, budget, subset=name)
                prompts = (data.prompts.plain, *limited(data.prompts.alignment, budget))
                cells += cells_of(_row(label, name), adapted(training), subject, prompts, budget.figures)
    return cells


def _row(label: str, name: str) -> str:
    return f"{label} {SUBSETS[name].label or name}"


def _claims(budget: Budget) -> list[Claim]:
    sizes = [
        Claim(
            f"PaRa's file is smaller than LoRA's for {SUBSETS[name].label}",
            "Table 3",
            Smaller("bytes", _row("PaRa", name), _row("LoRA", name)),
        )
        for name in _PAPER
    ]
    return [
        *sizes,
        Claim(
            "subsets with more parameters are nearer to the subject (PaRa and LoRA together)",
            "Figure 7",
            Correlated("parameters", "image"),
        ),
        Claim(
            "the whole model is nearer to the subject than the last layer of ExCA-HL",
            "Figure 7",
            Greater("image", _row("PaRa", "fmt"), _row("PaRa", "ex-ca-hl-last")),
        ),
        Claim(
            "and fits its text less",
            "Figure 7",
            Greater("text", _row("PaRa", "ex-ca-hl-last"), _row("PaRa", "fmt")),
        ),
    ]


SUBSETS_EXPERIMENT = Experiment(
    "subsets", "Subsets of layers: sizes and alignment", "Table 3, Figure 7", _build, _claims, diversity=False
)
