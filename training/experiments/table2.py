"""Table 2 with Figure 3 and Table 5: PaRa and the other methods, at equal steps and at each one's best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from paramerge.training.experiments.claims import Claim, Greater, Smaller
from paramerge.training.experiments.dataset import Dataset
from paramerge.training.experiments.line import Line, column_means
from paramerge.training.experiments.parts import (
    BEST,
    SETTINGS,
    adapted,
    cells_of,
    equal_steps,
    limited,
    stops_of,
    subjects_of,
    trained,
)
from paramerge.training.experiments.plan import Budget, Cell, Experiment, Plan

__all__ = ["METHODS_COMPARED", "TABLE2"]

METHODS_COMPARED = {
    "PaRa r=4": ("para", 4, 1.0),
    "PaRa r=8": ("para", 8, 1.0),
    "LoRA r=4": ("lora", 4, 1.0),
    "LoRA r=8": ("lora", 8, 1.0),
    "LoRA r=16, scale 2.2": ("lora", 16, 2.2),
    "SVDiff": ("svdiff", 1, 1.0),
    "DreamBooth": ("dreambooth", 1, 1.0),
    "textual inversion": ("textual-inversion", 1, 1.0),
    "OFT": ("oft", 4, 1.0),
    "LyCORIS LoKr": ("lokr", 4, 1.0),
    "LyCORIS LoHa": ("loha", 4, 1.0),
    "DiffuseKronA": ("krona", 1, 1.0),
}
"""Row, and the trainer's method, its rank (or size of blocks), and the scale it is applied with."""


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    cells = []
    for number, subject in enumerate(subjects_of(data, budget)):
        tables = {
            (data.prompts.plain,): budget.count,
            limited(data.prompts.alignment, budget): budget.figures,
        }
        for row, (method, rank, strength) in METHODS_COMPARED.items():
            settings = SETTINGS.get(method, {})
            training = trained(method, rank, subject, budget, strength=strength, **settings)
            for steps in training.stops:
                for prompts, count in tables.items():
                    cells += cells_of(
                        _row(row, steps),
                        adapted(training, steps, strength),
                        subject,
                        prompts,
                        count,
                        training.word,
                        number < budget.tuning_subjects,
                    )
    return cells


def _row(row: str, steps: int) -> str:
    return f"{row}, {steps} steps"


def _derive(lines: list[Line], plan: Plan, output: Path) -> list[Line]:
    """Each method at its best number of steps by the image score, chosen on the subjects for tuning.

    Without such subjects the last stop is taken, which is the paper's own number.
    """
    derived = []
    for row, (method, _, _) in METHODS_COMPARED.items():
        stops = stops_of(method, plan.budget)
        scores = {}
        for steps in stops:
            means = column_means([x for x in lines if x.tuning], _row(row, steps), "image")
            if means:
                scores[steps] = sum(means.values()) / len(means)
        best = max(scores, key=lambda steps: scores[steps]) if scores else stops[-1]
        derived += [
            replace(line, row=f"{row}, {BEST}", metrics={**line.metrics, "steps": best})
            for line in lines
            if line.row == _row(row, best) and not line.tuning
        ]
    return derived


def _claims(budget: Budget) -> list[Claim]:
    claims = []
    for kind in (f"{equal_steps(budget)} steps", BEST):
        para = f"PaRa r=8, {kind}"
        for row in METHODS_COMPARED:
            if row.startswith("PaRa"):
                continue
            text = f"PaRa's pictures are nearer to the subject's than those of {row} ({kind})"
            claims.append(Claim(text, "Table 2", Greater("image", para, f"{row}, {kind}", "plain")))
        lora = f"LoRA r=8, {kind}"
        claims += [
            Claim(
                f"so they are by LPIPS ({kind})",
                "Figure 3",
                Greater("perceptual", para, lora, "others"),
            ),
            Claim(
                f"LoRA's pictures fit their texts better ({kind})",
                "Figure 3",
                Greater("text", lora, para, "others"),
            ),
        ]
    para, lora = (f"{name} r=8, {equal_steps(budget)} steps" for name in ("PaRa", "LoRA"))
    claims += [
        Claim(
            "a PaRa has fewer parameters than a LoRA of its rank",
            "Table 5",
            Smaller("parameters", para, lora),
        ),
        Claim("it trains in less time", "Table 5", Greater("seconds", lora, para)),
    ]
    return claims


TABLE2 = Experiment(
    "table2",
    "Image and text alignment of PaRa and the other methods, at equal steps and at each one's best",
    "Table 2, Figure 3, Table 5",
    _build,
    _claims,
    _derive,
    figure="alignment",
    diversity=False,
)
