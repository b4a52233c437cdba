"""Figure 6: PaRa then LoRA against LoRA then PaRa, and the algebra's prediction of the loss.

Predicted is the share of the LoRA that a PaRa after it removes, ``||Q^T B A|| / ||B A||`` over all layers.
Measured is the missing part of the LoRA's effect on the pictures: ``1 - d(LP, P) / d(PL, P)``, where d is the
root mean square difference of pixels with the same seeds (if pixels followed weights it were ``1 - sqrt(1 -
s^2)`` of the predicted s), and P, PL and LP are the model with the PaRa, with the PaRa and then the LoRA, and
with the LoRA and then the PaRa. Besides trained PaRas there are some that are extracted from the LoRA itself,
of growing rank: the paper's extreme case.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from paramerge.adapters import LoraModule, ParaModule
from paramerge.training.experiments.claims import Claim, Correlated, Greater, Near
from paramerge.training.experiments.dataset import Dataset, Subject
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.parts import cells_of, held_out, limited, trained
from paramerge.training.experiments.places import picture_job, trained_folder
from paramerge.training.experiments.plan import Budget, Cell, Experiment, Plan, Use, Variant

__all__ = ["ORDER"]

_LORA_RANK = 8
_NOTHING = "nothing lost"
_NOTHING_LEFT = 0.05
"""A loss this near to 1 is called all of it."""
_ORDERS = ("PaRa alone", "PaRa, then LoRA", "LoRA, then PaRa")


def _build(data: Dataset, budget: Budget) -> list[Cell]:
    subjects = held_out(data, budget)
    cells = []
    for first, second in zip(subjects[0::2], subjects[1::2], strict=False):
        for name, para, lora in _pairs(first, second, budget):
            prompts = limited(data.prompts.alignment, budget)
            for order, uses in zip(_ORDERS, ((para,), (para, lora), (lora, para)), strict=True):
                cells += cells_of(f"{name} | {order}", Variant(uses), first, prompts, budget.figures)
    return cells


def _pairs(first: Subject, second: Subject, budget: Budget) -> list[tuple[str, Use, Use]]:
    """PaRas of the first subject, and parts of the second's LoRA, each with that LoRA."""
    training = trained("lora", _LORA_RANK, second, budget)
    lora = Use(training, training.stops[-1])
    pairs = []
    for rank in budget.ranks:
        para = trained("para", rank, first, budget)
        pairs.append((f"trained PaRa r={rank}", Use(para, para.stops[-1]), lora))
    for rank in (1, _LORA_RANK // 2, _LORA_RANK) if len(budget.ranks) > 2 else (1, _LORA_RANK):
        use = Use(training, training.stops[-1], extracted=rank)
        pairs.append((f"PaRa extracted from the LoRA, r={rank}", use, lora))
    return pairs


def _derive(lines: list[Line], plan: Plan, output: Path) -> list[Line]:
    from paramerge.training.evaluation.sets import read_pictures
    from paramerge.training.experiments.adapted import adapter_steps

    folder, trainings = output / plan.experiment.name, trained_folder(plan, output)
    derived = []
    cells = {(cell.row, cell.column): cell for cell in plan.cells}
    for (row, column), cell in cells.items():
        name, _, order = row.rpartition(" | ")
        if order != _ORDERS[1]:
            continue
        para, lora = (step.path for step in adapter_steps(plan, cell.variant, trainings))
        predicted = predicted_loss(para, lora)
        three = [picture_job(plan, cells[f"{name} | {each}", column], folder) for each in _ORDERS]
        for run, seeds in enumerate(plan.seeds(cell.count)):
            places = [three[0].seeds.index(seed) for seed in seeds]
            alone, right, wrong = (read_pictures([job.files[i] for i in places]) for job in three)
            effect = _difference(right, alone)
            if effect > 0:
                measured = 1 - _difference(wrong, alone) / effect
                metrics = {"predicted loss": predicted, "measured loss": measured}
                derived.append(Line(name, column, run, metrics, cell.tuning))
                nothing = {"measured loss": 0.0}
                derived.append(Line(_NOTHING, column, run, nothing, cell.tuning))
    return derived


def predicted_loss(para: Path, lora: Path) -> float:
    """``||Q^T B A|| / ||B A||`` over all layers of the LoRA; where there is no PaRa nothing is lost."""
    from paramerge.algebra import lora_loss
    from paramerge.apply.chain import orthonormal_basis
    from paramerge.formats import open_adapter

    removed = total = 0.0
    paras = open_adapter(para, family="para").modules
    for name, module in open_adapter(lora, family="lora").modules.items():
        if not isinstance(module, LoraModule):
            continue
        energy = module.norm() ** 2
        total += energy
        reduced = paras.get(name)
        if isinstance(reduced, ParaModule) and energy > 0:
            up, down = (factor.astype(np.float64) for factor in module.factors())
            removed += energy * lora_loss(orthonormal_basis(reduced).numpy(), up, down) ** 2
    return math.sqrt(removed / total) if total else 0.0


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    """The root mean square difference of pixels, 0 to 1."""
    return float(np.sqrt(np.mean(((first.astype(np.float64) - second) / 255) ** 2)))


def _claims(budget: Budget) -> list[Claim]:
    own = f"PaRa extracted from the LoRA, r={_LORA_RANK}"
    return [
        Claim(
            "a PaRa after a LoRA takes away from the LoRA's effect",
            "Figure 6, section 4.4",
            Greater("measured loss", f"trained PaRa r={budget.ranks[-1]}", _NOTHING),
        ),
        Claim(
            "the larger the intersection of the column spaces of Q and B, the more of the LoRA is lost",
            "section 3.2",
            Correlated("predicted loss", "measured loss"),
        ),
        Claim(
            "with Q the basis of B nothing of the LoRA is left",
            "section 3.2",
            Near("measured loss", own, 1.0, _NOTHING_LEFT),
        ),
    ]


ORDER = Experiment(
    "order",
    "PaRa then LoRA against LoRA then PaRa: predicted and measured loss",
    "Figure 6",
    _build,
    _claims,
    _derive,
    figure="order",
    diversity=False,
)
