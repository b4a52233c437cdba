"""An experiment before anything is done: its trainings, its pictures, and their cost. Plain data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from paramerge.training.config import TrainConfig
from paramerge.training.evaluation.drawing import Sampling
from paramerge.training.experiments.claims import Claim
from paramerge.training.experiments.dataset import Dataset, Subject
from paramerge.training.experiments.line import Line
from paramerge.training.pictures import find_pictures

__all__ = [
    "Budget",
    "Cell",
    "Cost",
    "Experiment",
    "Plan",
    "Training",
    "Use",
    "Variant",
    "make_plan",
    "whole_cost",
]

PLACEHOLDER = "<sks>"
"""The token that textual inversion adds to the vocabulary."""


@dataclass(frozen=True)
class Budget:
    """The amount of work of an experiment.

    Attributes
    ----------
    subjects, tuning_subjects:
        Subjects in all; on the first few of them each method's best number of steps is chosen, and the others
        are held out for the report.
    prompts:
        At most as many of each list of prompts.
    para_stops, other_stops:
        Steps of training after which an adapter is kept, ascending; for PaRa, and for all other methods.
    ranks:
        The ranks of sweeps over ranks.
    gammas:
        The rank boundaries of the sweep over them.
    gamma:
        PaRa's rank boundary everywhere else.
    count, edits, figures:
        Pictures of a prompt in a run: for the tables, for editing, and for the paper's figures.
    runs:
        Runs with other seeds.
    rates:
        Learning rates by method, where the trainer's own do not suit the model; ``lora, scale 2.2`` is for
        LoRAs that are applied with that strength.
    rate_factors:
        Factors on these where rates are compared.
    notes:
        The assumptions behind the numbers, for the plan and the results.
    seconds:
        How long a training step and a sampled picture take, and where that is from; for estimates alone.
    """

    name: str
    subjects: int
    tuning_subjects: int
    prompts: int
    para_stops: tuple[int, ...]
    other_stops: tuple[int, ...]
    ranks: tuple[int, ...]
    gammas: tuple[float | None, ...]
    gamma: float | None
    count: int
    edits: int
    figures: int
    runs: int
    sampling: Sampling
    max_pairs: int | None = None
    batch_size: int = 1
    mixed_precision: str = "no"
    rates: tuple[tuple[str, float], ...] = ()
    rate_factors: tuple[float, ...] = (1 / 3, 1.0, 3.0)
    notes: tuple[str, ...] = ()
    seconds: tuple[float, float, str] | None = None


@dataclass(frozen=True)
class Training:
    """An adapter to train; with the same ones of other experiments it is trained once.

    ``stops`` are the steps after which it is kept; ``pictures`` limits the subject's (1 for editing).
    """

    method: str
    rank: int
    subject: Subject
    stops: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    pictures: int | None = None

    @property
    def word(self) -> str:
        """The word for the subject in prompts: textual inversion has one of its own making."""
        return PLACEHOLDER if self.method == "textual-inversion" else self.subject.word

    def config(self, model: Path, data: Dataset, folder: Path, steps: int, seed: int) -> TrainConfig:
        """The trainer's configuration for the first ``steps``."""
        return TrainConfig(
            model=model,
            instance_folder=self.subject.folder,
            instance_prompt=data.prompts.instance.format(subject=self.word),
            output=folder,
            method=self.method,
            rank=self.rank,
            steps=steps,
            seed=seed,
            placeholder=PLACEHOLDER,
            save_every=0,
            checkpoints_limit=1,
            **dict(self.settings),
        )

    def identity(self) -> str:
        """A short hash of all but the stops, which add to one another.

        Of the subject's folder its name and its parent's count: the data may be moved, or named otherwise on
        the command line. Adapters' folders check that the pictures are the same.
        """
        folder = self.subject.folder.resolve()
        subject = replace(self.subject, folder=Path(folder.parent.name, folder.name))
        values = asdict(replace(self, stops=(), subject=subject))
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.method}-r{self.rank}-{self.subject.name}-{self.identity()}"


@dataclass(frozen=True)
class Use:
    """A trained adapter at work.

    ``extracted`` takes in place of a LoRA the PaRa of this rank that removes the LoRA's strongest output
    directions.
    """

    training: Training
    steps: int
    strength: float = 1.0
    extracted: int | None = None


@dataclass(frozen=True)
class Variant:
    """The model with adapters on it, applied in this order."""

    uses: tuple[Use, ...] = ()
    merge: str = "joint"

    def identity(self) -> str:
        """A short name for folders."""
        parts = [
            (use.training.name, use.steps, use.strength, use.extracted) for use in self.uses
        ]  # the trainings' names have hashes of all that matters
        return hashlib.sha256(json.dumps([parts, self.merge]).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: pictures of a prompt, measured by run.

    Attributes
    ----------
    row, column:
        Rows are compared with each other, on each of the columns.
    text:
        The text of the text score.
    count:
        Pictures in a run.
    tuning:
        Whether the column is for choosing, and not held out.
    plain:
        Whether the prompt is the data's plain one.
    learnt:
        The number of the subject's pictures that were learnt, where results are compared with these alone;
        None for all.
    """

    row: str
    column: str
    variant: Variant
    prompt: str
    text: str
    references: Subject
    count: int
    tuning: bool = False
    plain: bool = False
    learnt: int | None = None


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    Attributes
    ----------
    build:
        The cells, from the data and the budget.
    claims:
        The paper's claims, from the budget: each is judged alone.
    derive:
        More lines, from those measured and the output folder; None for none.
    figure:
        ``bars``, ``alignment``, ``order`` or ``rates``.
    diversity:
        Whether SSIM over all pairs is measured, which is the most work of all measuring.
    held_out:
        Whether it is about subjects that nothing was chosen by: those for tuning are shown to no verdict.
    """

    name: str
    title: str
    source: str
    build: Callable[[Dataset, Budget], list[Cell]]
    claims: Callable[[Budget], list[Claim]]
    derive: Callable[[list[Line], Plan, Path], list[Line]] | None = None
    figure: str = "bars"
    diversity: bool = True
    held_out: bool = True


@dataclass(frozen=True)
class Cost:
    """The work of a plan; ``unet_calls`` counts pictures, as guidance takes two a step."""

    trainings: int
    training_steps: int
    variants: int
    pictures: int
    unet_calls: int
    ssim_pairs: int
    clip_pictures: int
    lpips_pairs: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """The whole work of an experiment."""

    experiment: Experiment
    budget: Budget
    model: Path
    data: Dataset
    seed: int
    cells: tuple[Cell, ...]
    trainings: tuple[Training, ...] = field(default=())

    def seeds(self, count: int) -> tuple[tuple[int, ...], ...]:
        """The seeds of ``count`` pictures of each run; another seed of the experiment has all others."""
        budget, first = self.budget, self.seed * 1_000_003
        apart = max(budget.count, budget.edits, budget.figures)
        return tuple(
            tuple(range(first + run * apart, first + run * apart + count)) for run in range(budget.runs)
        )

    def drawn(self) -> dict[tuple[Variant, str], list[Cell]]:
        """The cells by their pictures: cells that differ in their references alone share pictures."""
        found: dict[tuple[Variant, str], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault((cell.variant, cell.prompt), []).append(cell)
        return found

    def cost(self) -> Cost:
        """The work in counts, and the time where the budget knows that of its parts."""
        budget = self.budget
        steps = sum(training.stops[-1] for training in self.trainings)
        pictures = budget.runs * sum(max(c.count for c in cells) for cells in self.drawn().values())
        references = {
            subject: len(find_pictures(subject.folder, "--data"))
            for subject in {cell.references for cell in self.cells}
        }
        seconds = None
        if budget.seconds is not None:
            seconds = steps * budget.seconds[0] + pictures * budget.seconds[1]
        return Cost(
            trainings=len(self.trainings),
            training_steps=steps,
            variants=len({variant for variant, _ in self.drawn()}),
            pictures=pictures,
            unet_calls=pictures * budget.sampling.steps * (2 if budget.sampling.guidance > 1 else 1),
            ssim_pairs=budget.runs * sum(self._pairs(cell.count) for cell in self.cells),
            clip_pictures=budget.runs * sum(cell.count for cell in self.cells),
            lpips_pairs=budget.runs * sum(cell.count * references[cell.references] for cell in self.cells),
            seconds=seconds,
        )

    def _pairs(self, count: int) -> int:
        if not self.experiment.diversity:
            return 0
        pairs, limit = math.comb(count, 2), self.budget.max_pairs
        return pairs if limit is None else min(pairs, limit)


def make_plan(experiment: Experiment, budget: Budget, model: Path, data: Dataset, seed: int = 0) -> Plan:
    """Plan ``experiment``.

    Raises
    ------
    UsageError
        The data has too few subjects.
    """
    cells = tuple(_marked(cell, data, budget, experiment.held_out) for cell in experiment.build(data, budget))
    uses = [use.training for cell in cells for use in cell.variant.uses]
    return Plan(experiment, budget, model, data, seed, cells, tuple(_together(uses)))


def _marked(cell: Cell, data: Dataset, budget: Budget, held_out: bool) -> Cell:
    """The cell, marked where a subject for tuning is in it, and where its prompt is the plain one."""
    tuned = data.subjects[: budget.tuning_subjects if held_out else 0]
    subjects = {cell.references, *(use.training.subject for use in cell.variant.uses)}
    plain = cell.column.partition(": ")[2] == data.prompts.plain.format(subject="[V]")
    return replace(cell, tuning=cell.tuning or not subjects.isdisjoint(tuned), plain=plain)


def whole_cost(plans: Sequence[Plan]) -> tuple[int, int, int, float | None]:
    """The cost of several experiments with one budget in one folder, which share their adapters.

    Trainings, their steps, pictures, and seconds where the budget knows those of its parts.
    """
    trainings = _together(training for plan in plans for training in plan.trainings)
    steps = sum(training.stops[-1] for training in trainings)
    pictures = sum(plan.cost().pictures for plan in plans)
    known = plans[0].budget.seconds
    seconds = None if known is None else steps * known[0] + pictures * known[1]
    return len(trainings), steps, pictures, seconds


def _together(trainings: Iterable[Training]) -> list[Training]:
    """Each training once, with all its stops."""
    found: dict[str, Training] = {}
    for training in trainings:
        before = found.get(training.name)
        stops = {*training.stops, *(before.stops if before else ())}
        found[training.name] = replace(training, stops=tuple(sorted(stops)))
    return list(found.values())
