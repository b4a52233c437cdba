"""Figures 4 and 10: two subjects in a picture, by merged PaRas and by sums of LoRAs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from paramerge.training.experiments.claims import Claim, Greater, Trend
from paramerge.training.experiments.dataset import Dataset, Subject
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.parts import held_out, limited, trained
from paramerge.training.experiments.plan import Budget, Cell, Experiment, Plan, Use, Variant

__all__ = ["COMPOSITION"]

_LORA_RANK = 16
_LORA = f"LoRA r={_LORA_RANK} and {_LORA_RANK}"
_SUBJECTS = ("first", "second")


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    subjects = held_out(data, budget)
    cells = []
    for first, second in zip(subjects[0::2], subjects[1::2], strict=False):
        for template in limited(data.prompts.composition, budget):
            for row, variant in _variants(first, second, budget).items():
                cells += _cells(row, variant, template, first, second, budget.figures)
    return cells


def _variants(first: Subject, second: Subject, budget: Budget) -> dict[str, Variant]:
    low = trained("para", budget.ranks[0], first, budget)
    variants = {}
    for rank in budget.ranks:
        uses = tuple(
            Use(training, training.stops[-1]) for training in (low, trained("para", rank, second, budget))
        )
        variants[_row("joint", budget, rank)] = Variant(uses)
        variants[_row("sequential", budget, rank)] = Variant(uses, "sequential")
    loras = tuple(
        Use(training, training.stops[-1])
        for training in (trained("lora", _LORA_RANK, each, budget) for each in (first, second))
    )
    return {**variants, _LORA: Variant(loras)}


def _row(merge: str, budget: Budget, rank: int) -> str:
    return f"PaRa {merge}, r={budget.ranks[0]} and {rank}"


def _cells(
    row: str, variant: Variant, template: str, first: Subject, second: Subject, count: int
) -> list[Cell]:
    prompt = template.format(first=first.word, second=second.word)
    text = template.format(first=first.kind, second=second.kind)
    column = f"{first.name} and {second.name}"
    return [
        Cell(f"{row} | {which}", f"{column}: {template}", variant, prompt, text, references, count)
        for which, references in zip(_SUBJECTS, (first, second), strict=True)
    ]


def _derive(lines: list[Line], plan: Plan, output: Path) -> list[Line]:
    """``worse``: the image score of that subject which is less there; and the scores of both."""
    found: dict[tuple[str, str, int], dict[str, Line]] = {}
    for line in lines:
        row, _, which = line.row.rpartition(" | ")
        found.setdefault((row, line.column, line.run), {})[which] = line
    derived = []
    for (row, _, _), parts in found.items():
        images = {which: line.metrics["image"] for which, line in parts.items() if "image" in line.metrics}
        common = {k: v for k, v in parts[_SUBJECTS[0]].metrics.items() if k in ("text", "diversity")}
        if len(images) == len(_SUBJECTS):
            scores = {f"image of the {which}": value for which, value in images.items()}
            metrics = {**common, **scores, "worse": min(images.values())}
            derived.append(replace(parts[_SUBJECTS[0]], row=row, metrics=metrics))
    return derived


def _claims(budget: Budget) -> list[Claim]:
    high = budget.ranks[1]
    joint, sequential = (_row(merge, budget, high) for merge in ("joint", "sequential"))
    rows = tuple(_row("joint", budget, rank) for rank in budget.ranks)
    return [
        Claim(
            "merged PaRas show both subjects where summed LoRAs show one (the worse of both image scores)",
            "Figure 4",
            Greater("worse", joint, _LORA),
        ),
        Claim("one PaRa after the other does, too", "Figure 4", Greater("worse", sequential, _LORA)),
        Claim(
            "the higher the second rank, the less of the first subject",
            "Figure 10",
            Trend("image of the first", rows, rising=False),
        ),
    ]


COMPOSITION = Experiment(
    "composition",
    "Two subjects in a picture: joint and sequential merges of PaRas, sums of LoRAs",
    "Figures 4 and 10",
    _build,
    _claims,
    _derive,
)
