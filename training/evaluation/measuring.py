"""Measuring sets of pictures: shared by all processes, resumable, the same for any number of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paramerge.training.evaluation.clip import Clip
from paramerge.training.evaluation.lpips import Perceptual
from paramerge.training.evaluation.processes import Processes
from paramerge.training.evaluation.records import Records
from paramerge.training.evaluation.sets import PictureSet, read_pictures, read_references
from paramerge.training.evaluation.ssim import SSIM, pairs_of, ssim

__all__ = ["METRICS", "Measures", "SetScores", "measure"]

METRICS = {
    "diversity": "average pairwise SSIM: higher is less diverse",
    "text": "cosine of picture and text",
    "image": "mean cosine of picture and the subject's pictures",
    "perceptual": "mean 1 - LPIPS to the subject's pictures",
}
"""The metrics by their names in records."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Measures:
    """The metrics and the models that measure them; a model that is None leaves its metrics out.

    Attributes
    ----------
    ssim:
        Whether diversity is measured.
    max_pairs:
        At most as many pairs of a set, drawn at random; None for all.
    batch:
        Pictures, or pairs, at once. Part of a result's identity: other batches round otherwise.
    """

    clip: Clip | None = None
    perceptual: Perceptual | None = None
    ssim: bool = True
    max_pairs: int | None = None
    batch: int = 16
    device: str = "cpu"

    def models(self) -> dict[str, str]:
        """The name of the model of each metric that is measured."""
        named = {"diversity": SSIM} if self.ssim else {}
        if self.clip is not None:
            named |= {"text": self.clip.name, "image": self.clip.name}
        if self.perceptual is not None:
            named["perceptual"] = self.perceptual.name
        return named


@dataclass(frozen=True)
class SetScores:
    """The scores of a set: of each picture (NaN-free lists, or None), and of its pairs."""

    label: str
    run: int
    pictures: int
    values: dict[str, tuple[float, ...]]
    """By metric: for ``diversity`` one value a pair, else one a picture."""

    def mean(self, metric: str) -> float | None:
        """The mean over pictures or pairs; None where there is nothing."""
        values = self.values.get(metric)
        return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class _Task:
    """A piece of work: ``count`` pictures or pairs of a set, from ``first``."""

    place: int
    kind: str
    first: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.place:06d} {self.kind} {self.first:08d}"


def measure(
    sets: Sequence[PictureSet],
    measures: Measures,
    folder: Path,
    processes: Processes | None = None,
    report: Report | None = None,
) -> list[SetScores]:
    """Measure all ``sets``; pictures that ``folder`` has records of are not measured again.

    The caller ensures that the folder's records are of the same sets and measures. All processes get all the
    scores.

    Parameters
    ----------
    report:
        Called with how many of this process's tasks are done, and how many it has.

    Raises
    ------
    FileFormatError
        A picture cannot be read, or a record is damaged.
    UsageError
        Pictures of a set have different sizes.
    OutputError
        A record cannot be written.
    """
    processes = processes or Processes()
    tasks = [task for place, each in enumerate(sets) for task in _tasks(place, each, measures)]
    records = Records(folder, processes.rank)
    done = records.read()
    processes.wait()  # all have read before any writes, so all share the same tasks
    mine = processes.share([task for task in tasks if task.name not in done])
    reader = _Reader(measures)
    for number, task in enumerate(mine, start=1):
        picture_set = sets[task.place]
        carry_out = _pairs if task.kind == "pairs" else _pictures
        values = carry_out(picture_set, task, measures, reader)
        records.add({"task": task.name, "set": picture_set.name, "values": values})
        if report is not None:
            report(number, len(mine))
    processes.wait()
    found = records.read()
    return [_scores(place, each, measures, found) for place, each in enumerate(sets)]


def _tasks(place: int, each: PictureSet, measures: Measures) -> list[_Task]:
    pictures = len(each.pictures)
    pairs = math.comb(pictures, 2)
    pairs = pairs if measures.max_pairs is None else min(pairs, measures.max_pairs)
    scored = (measures.clip is not None and bool(each.text or each.references)) or (
        measures.perceptual is not None and bool(each.references)
    )
    tasks = [("pictures", pictures)] if scored else []
    tasks += [("pairs", pairs)] if measures.ssim else []
    return [
        _Task(place, kind, first, min(measures.batch, count - first))
        for kind, count in tasks
        for first in range(0, count, measures.batch)
    ]


class _Reader:
    """Pictures, and values of each subject that are computed once, kept while neighbours need them."""

    def __init__(self, measures: Measures) -> None:
        self.picture = lru_cache(maxsize=256)(lambda path: read_pictures([path])[0])
        self.pairs = lru_cache(maxsize=4)(pairs_of)
        self.references = lru_cache(maxsize=4)(read_references)
        self.seen = lru_cache(maxsize=4)(lambda files, size: self._features(files, size, measures))

    def pictures(self, files: Sequence[Path]) -> np.ndarray:
        found = [self.picture(path) for path in files]
        return np.stack(found) if len({each.shape for each in found}) == 1 else read_pictures(files)

    def _features(self, files: tuple[Path, ...], size: tuple[int, int], measures: Measures) -> Any:
        clip, pictures = measures.clip, self.references(files, size)
        assert clip is not None  # the caller asks only with one
        return [
            clip.embed_pictures(pictures[first : first + measures.batch])
            for first in range(0, len(pictures), measures.batch)
        ]


def _pictures(each: PictureSet, task: _Task, measures: Measures, reader: _Reader) -> dict[str, list[float]]:
    pictures = reader.pictures(each.pictures[task.first : task.first + task.count])
    size = (pictures.shape[1], pictures.shape[2])
    values: dict[str, list[float]] = {}
    if measures.clip is not None:
        embedded = measures.clip.embed_pictures(pictures)
        if each.text:
            values["text"] = (embedded @ measures.clip.embed_texts([each.text])[0]).tolist()
        if each.references:
            cosines = [(embedded @ part.T) for part in reader.seen(each.references, size)]
            total = sum(part.sum(dim=1) for part in cosines)
            values["image"] = (total / len(each.references)).tolist()
    if measures.perceptual is not None and each.references:
        references = reader.references(each.references, size)
        values["perceptual"] = measures.perceptual.similarity(pictures, references).tolist()
    return values


def _pairs(each: PictureSet, task: _Task, measures: Measures, reader: _Reader) -> dict[str, list[float]]:
    pairs = reader.pairs(len(each.pictures), measures.max_pairs, each.run)
    pairs = pairs[task.first : task.first + task.count]
    files = each.pictures
    first, second = (reader.pictures([files[i] for i in pairs[:, side]]) for side in (0, 1))
    return {"diversity": ssim(first, second, measures.device).tolist()}


def _scores(place: int, each: PictureSet, measures: Measures, found: dict[str, Any]) -> SetScores:
    values: dict[str, list[float]] = {}
    for task in _tasks(place, each, measures):
        for metric, numbers in found[task.name]["values"].items():
            values.setdefault(metric, []).extend(numbers)
    plain = {metric: tuple(numbers) for metric, numbers in values.items()}
    return SetScores(each.label, each.run, len(each.pictures), plain)
