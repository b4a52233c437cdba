"""Carrying a plan out: train, draw, measure, judge; stopped anywhere, it goes on there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paramerge.files.outputs import check_output_folder
from paramerge.files.writer import make_folder, write_bytes
from paramerge.generation.loading import pick_dtype
from paramerge.training.evaluation.drawing import draw_missing
from paramerge.training.evaluation.measuring import Measures, SetScores, measure
from paramerge.training.evaluation.processes import Processes
from paramerge.training.evaluation.records import claim_folder, json_lines
from paramerge.training.evaluation.sets import PictureSet
from paramerge.training.experiments.adapted import load_variant
from paramerge.training.experiments.described import plan_as_dict
from paramerge.training.experiments.figures import example_grid, figure_of
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.places import picture_job, trained_folder
from paramerge.training.experiments.plan import Cell, Plan, Variant
from paramerge.training.experiments.rates import rates_of
from paramerge.training.experiments.trained import data_identity, diverged, kept, train_missing
from paramerge.training.experiments.verdict import Verdict, judge_all
from paramerge.training.pictures import find_pictures
from paramerge.version import __version__

__all__ = ["Outcome", "run_experiment"]

Stage = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of an experiment: every line, the verdicts, and the models that measured.

    ``plan`` is without the cells of trainings that diverged, which are in ``diverged`` by name.
    """

    plan: Plan
    lines: tuple[Line, ...]
    verdicts: tuple[Verdict, ...]
    models: Mapping[str, str]
    folder: Path
    diverged: Mapping[str, str]


def run_experiment(
    plan: Plan,
    measures: Measures,
    output: Path,
    processes: Processes | None = None,
    stage: Stage | None = None,
) -> Outcome:
    """Carry out ``plan`` in ``output``.

    ``output/trained`` has the adapters, which experiments share; ``output/<experiment>`` has the pictures,
    the records of every score, ``results.jsonl`` (a line for each cell and run), ``summary.json`` (what was
    run, and the verdicts), ``figure.png`` and ``examples.png``.

    Raises
    ------
    UsageError
        The folder holds the experiment with other settings, or adapters of other pictures.
    ParamergeError
        What training, drawing and measuring raise.
    """
    processes, stage = processes or Processes(), stage or (lambda title: lambda done, total: None)
    measures = replace(measures, ssim=plan.experiment.diversity)
    folder, trained = output / plan.experiment.name, trained_folder(plan, output)
    settings = _settings(plan, measures)
    if processes.first:
        inputs = [plan.model, plan.data.folder]
        check_output_folder(output, inputs, files=())
        make_folder(trained.parent)
        claim_folder(trained, {"data_sha256": settings["data_sha256"]})
        claim_folder(folder, settings, inputs)
    processes.wait()
    if not processes.first:
        claim_folder(folder, settings)
    train_missing(plan, trained, measures.device, processes, stage("training"))
    plan, ended = _without_diverged(plan, trained)
    _draw(plan, folder, trained, measures.device, processes, stage("drawing"))
    scores = measure(_sets(plan, folder), measures, folder / "records", processes, stage("measuring"))
    lines = _lines(plan, scores, trained)
    if plan.experiment.derive is not None:
        lines += plan.experiment.derive(lines, plan, output)
    verdicts = judge_all(plan.experiment.claims(plan.budget), lines)
    outcome = Outcome(plan, tuple(lines), tuple(verdicts), measures.models(), folder, ended)
    if processes.first:
        _write(outcome, settings)
    processes.wait()
    return outcome


def _without_diverged(plan: Plan, trained: Path) -> tuple[Plan, dict[str, str]]:
    """The plan without the cells of failed adapters, and the faults of these."""
    ended = {training: words for training in plan.trainings if (words := diverged(plan, training, trained))}
    names = {training.name: words for training, words in ended.items()}
    cells = [cell for cell in plan.cells if not any(use.training.name in names for use in cell.variant.uses)]
    return replace(plan, cells=tuple(cells)), names


def _settings(plan: Plan, measures: Measures) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(json.dumps(plan_as_dict(plan), default=str))
    del whole["cost"]
    for name in ("notes", "seconds", "rates", "rate_factors"):
        del whole["budget"][name]  # words and estimates; the rates that count are the trainings'
    return whole | {
        "data_sha256": data_identity(plan),
        "measures": {
            "models": measures.models(),
            "max_pairs": measures.max_pairs,
            "batch": measures.batch,
        },
    }


def _draw(
    plan: Plan,
    folder: Path,
    trained: Path,
    device: str,
    processes: Processes,
    report: Callable[[int, int], None],
) -> None:
    jobs: dict[Variant, list[Cell]] = {}
    for (variant, _), cells in plan.drawn().items():
        jobs.setdefault(variant, []).append(max(cells, key=lambda cell: cell.count))
    dtype = pick_dtype(None, device)
    for number, (variant, cells) in enumerate(jobs.items(), start=1):

        def load(variant: Variant = variant) -> Any:
            return load_variant(plan, variant, trained, dtype, device)

        wanted = [picture_job(plan, cell, folder) for cell in cells]
        draw_missing(load, wanted, plan.budget.sampling, processes)
        report(number, len(jobs))


def _sets(plan: Plan, folder: Path) -> list[PictureSet]:
    sets = []
    for place, cell in enumerate(plan.cells):
        job, count = picture_job(plan, cell, folder), cell.count
        pictures = [] if cell.references is None else find_pictures(cell.references.folder, "--data")
        sets += [
            PictureSet(
                f"{place:05d}",
                run,
                job.files[run * count : (run + 1) * count],
                cell.text,
                tuple(pictures[: cell.learnt]),
            )
            for run in range(plan.budget.runs)
        ]
    return sets


def _lines(plan: Plan, scores: Sequence[SetScores], trained: Path) -> list[Line]:
    lines = []
    for each in scores:
        cell = plan.cells[int(each.label)]
        metrics = {name: mean for name in each.values if (mean := each.mean(name)) is not None}
        lines.append(
            Line(
                cell.row,
                cell.column,
                each.run,
                metrics | _facts(plan, cell, trained),
                cell.tuning,
                cell.plain,
            )
        )
    return lines


def _facts(plan: Plan, cell: Cell, trained: Path) -> dict[str, float]:
    """The sizes and training times of a cell's adapters."""
    if not cell.variant.uses or any(use.extracted is not None for use in cell.variant.uses):
        return {}
    found = [kept(plan, use.training, trained, use.steps) for use in cell.variant.uses]
    return {
        "parameters": float(sum(each.parameters for each in found)),
        "bytes": float(sum(each.bytes for each in found)),
        "seconds": sum(each.seconds for each in found),
    }


def _write(outcome: Outcome, settings: Mapping[str, Any]) -> None:
    folder, plan = outcome.folder, outcome.plan
    write_bytes(folder / "results.jsonl", json_lines(line.as_dict() for line in outcome.lines))
    write_bytes(folder / "figure.png", figure_of(plan.experiment, outcome.lines, outcome.models))
    write_bytes(folder / "examples.png", example_grid(plan, folder))
    budget = plan.budget
    summary = {
        "experiment": plan.experiment.name,
        "title": plan.experiment.title,
        "source": plan.experiment.source,
        "version": __version__,
        "model": plan.model.name,
        "data": plan.data.folder.name,
        "data_sha256": settings["data_sha256"],
        "subjects": [subject.name for subject in plan.data.first(budget.subjects)],
        "budget": budget.name,
        "seed": plan.seed,
        "stops": {"para": list(budget.para_stops), "others": list(budget.other_stops)},
        "pictures": sorted({cell.count for cell in plan.cells}),
        "runs": budget.runs,
        "sampling": asdict(budget.sampling),
        "rates": rates_of(budget),
        "notes": list(budget.notes),
        "diverged": dict(outcome.diverged),
        "measured_by": dict(outcome.models),
        "verdicts": [verdict.as_dict() for verdict in outcome.verdicts],
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_bytes(folder / "summary.json", text.encode())
