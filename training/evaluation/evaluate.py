"""A whole evaluation, of a model's pictures or of folders of pictures, into one folder of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paramerge.apply.steps import BakeOptions, Step
from paramerge.bake.plan import make_plan
from paramerge.checkpoints.layout import open_base
from paramerge.errors import UsageError
from paramerge.files.outputs import inputs_of
from paramerge.files.writer import write_bytes
from paramerge.formats import open_adapter
from paramerge.generation.adapting import apply_plan
from paramerge.generation.loading import load_pipeline, pick_dtype
from paramerge.shipped import named_adapter
from paramerge.training.evaluation.drawing import PictureJob, Sampling, draw_missing
from paramerge.training.evaluation.measuring import Measures, SetScores, measure
from paramerge.training.evaluation.plot import bars
from paramerge.training.evaluation.processes import Processes
from paramerge.training.evaluation.records import claim_folder, json_lines
from paramerge.training.evaluation.sets import PictureSet
from paramerge.training.evaluation.summary import Summary, summed_up
from paramerge.training.pictures import data_hash, find_pictures

__all__ = ["Drawn", "Results", "evaluate_drawn", "evaluate_folders"]

Stage = Callable[[str], Callable[[int, int], None]]
"""Called at the beginning of a stage with its title; returns the function to call with its progress."""


@dataclass(frozen=True)
class Drawn:
    """Pictures to draw from a model and measure.

    Attributes
    ----------
    texts:
        The texts of the text score, one for each prompt, or none: then the prompts themselves. A word that
        the adapter taught means nothing to CLIP, so the class's word belongs there instead.
    count, runs:
        Pictures of a prompt and run, and runs; run ``i`` has the seeds from ``seed + i * count``.
    """

    model: Path
    prompts: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    texts: tuple[str, ...] = ()
    references: Path | None = None
    count: int = 16
    runs: int = 1
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    gamma: float | None = None
    dtype: str | None = None
    variant: str | None = None
    config: Path | None = None

    def __post_init__(self) -> None:
        if self.texts and len(self.texts) != len(self.prompts):
            raise UsageError(
                "the numbers of prompts and texts differ",
                where="--text",
                expected=f"{len(self.prompts)} texts, or none",
                found=len(self.texts),
            )


@dataclass(frozen=True)
class Results:
    """The outcome of an evaluation; the folder has it as ``results.jsonl`` and ``results.png``."""

    rows: tuple[Summary, ...]
    models: Mapping[str, str]
    scores: tuple[SetScores, ...]
    folder: Path


def evaluate_drawn(
    drawn: Drawn,
    measures: Measures,
    folder: Path,
    processes: Processes | None = None,
    stage: Stage | None = None,
) -> Results:
    """Draw the pictures that are missing in ``folder/pictures`` and measure them.

    Raises
    ------
    UsageError
        The folder holds another evaluation, or there are no references where they should be.
    NonFiniteError
        A picture is NaN.
    """
    processes, stage = processes or Processes(), stage or _no_stage
    base = open_base(drawn.model, drawn.variant)
    opened = [(step, open_adapter(step.path, family=step.kind)) for step in drawn.steps]
    plan = make_plan(base, opened, BakeOptions(gamma=drawn.gamma)) if opened else None
    references = () if drawn.references is None else tuple(find_pictures(drawn.references, "--references"))
    settings = _plain(drawn) | {
        "adapters": [
            {"kind": step.kind, "strength": step.strength, "sha256": data_hash([named_adapter(step.path)])}
            for step in drawn.steps
        ],
        "references": data_hash(references),
        "measures": _described(measures),
    }
    inputs = inputs_of(base, *(adapter for _, adapter in opened))
    inputs += [place for place in (drawn.references, drawn.config) if place is not None]
    _claim(folder, settings, processes, inputs)

    def load() -> Any:
        pipeline = load_pipeline(base, pick_dtype(drawn.dtype, measures.device), drawn.config)
        if plan is not None:
            apply_plan(plan, pipeline)
        return pipeline.to(measures.device)

    jobs = [
        PictureJob(folder / "pictures" / f"{number:02d}", prompt, _seeds(drawn))
        for number, prompt in enumerate(drawn.prompts)
    ]
    draw_missing(load, jobs, drawn.sampling, processes, stage("drawing"))
    sets = [
        PictureSet(
            job.prompt,
            run,
            job.files[run * drawn.count : (run + 1) * drawn.count],
            text,
            references,
        )
        for job, text in zip(jobs, drawn.texts or drawn.prompts, strict=True)
        for run in range(drawn.runs)
    ]
    return _measured(sets, measures, folder, processes, stage)


def evaluate_folders(
    folders: Sequence[Path],
    measures: Measures,
    folder: Path,
    texts: Sequence[str] = (),
    references: Path | None = None,
    processes: Processes | None = None,
    stage: Stage | None = None,
) -> Results:
    """Measure pictures that are there: a set, and a row, for each of ``folders``.

    Parameters
    ----------
    texts:
        The texts of the text score: one for all folders, or one for each, or none.

    Raises
    ------
    UsageError
        A folder is missing or has no picture, or ``folder`` holds another evaluation.
    FileFormatError
        A picture is damaged.
    """
    processes, stage = processes or Processes(), stage or _no_stage
    if len(texts) not in (0, 1, len(folders)):
        raise UsageError(
            "the numbers of folders and texts differ",
            where="--text",
            expected=f"none, 1 or {len(folders)}",
            found=len(texts),
        )
    own = tuple(find_pictures(references, "--references")) if references is not None else ()
    every = [""] * len(folders) if not texts else [*texts] * (len(folders) if len(texts) == 1 else 1)
    names = [path.resolve().name for path in folders]
    labels = names if len(set(names)) == len(names) else [str(path) for path in folders]
    sets = [
        PictureSet(label, 0, tuple(find_pictures(path, "--pictures")), text, own)
        for label, path, text in zip(labels, folders, every, strict=True)
    ]
    settings = {
        "sets": [[each.label, each.text, data_hash(each.pictures)] for each in sets],
        "references": data_hash(own),
        "measures": _described(measures),
    }
    inputs = [*folders] if references is None else [*folders, references]
    _claim(folder, settings, processes, inputs)
    return _measured(sets, measures, folder, processes, stage)


def _no_stage(title: str) -> Callable[[int, int], None]:
    return lambda done, total: None


def _seeds(drawn: Drawn) -> tuple[int, ...]:
    return tuple(range(drawn.seed, drawn.seed + drawn.count * drawn.runs))


def _plain(drawn: Drawn) -> dict[str, Any]:
    values = {name: getattr(drawn, name) for name in ("prompts", "texts", "count", "runs", "seed", "gamma")}
    values |= {"dtype": drawn.dtype, "variant": drawn.variant, "sampling": asdict(drawn.sampling)}
    size = drawn.model.stat().st_size if drawn.model.is_file() else None
    return values | {"model": drawn.model.resolve().name, "model_bytes": size}


def _described(measures: Measures) -> dict[str, Any]:
    return {"models": measures.models(), "max_pairs": measures.max_pairs, "batch": measures.batch}


def _claim(folder: Path, settings: Mapping[str, Any], processes: Processes, inputs: Sequence[Path]) -> None:
    if processes.first:
        claim_folder(folder, settings, inputs)
    processes.wait()
    if not processes.first:
        claim_folder(folder, settings)


def _measured(
    sets: Sequence[PictureSet],
    measures: Measures,
    folder: Path,
    processes: Processes,
    stage: Stage,
) -> Results:
    scores = measure(sets, measures, folder / "records", processes, stage("measuring"))
    rows, models = summed_up(scores), measures.models()
    if processes.first:
        lines = [row.as_dict(models) | {"values": _values(row.label, scores)} for row in rows]
        write_bytes(folder / "results.jsonl", json_lines(lines))
        write_bytes(folder / "results.png", bars(rows, models))
    processes.wait()
    return Results(tuple(rows), models, tuple(scores), folder)


def _values(label: str, scores: Sequence[SetScores]) -> list[dict[str, Any]]:
    """Every single score of a row, by run."""
    return [
        {"run": each.run, "pictures": each.pictures, **{name: list(v) for name, v in each.values.items()}}
        for each in scores
        if each.label == label
    ]
