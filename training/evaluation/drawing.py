"""The pictures that are measured: drawn in batches, shared by all processes, each once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramerge.files.writer import make_folder, write_bytes
from paramerge.training.evaluation.processes import Processes

__all__ = ["PictureJob", "Sampling", "draw_missing", "picture_file"]

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampling.

    ``batch`` pictures are drawn at once; batches of another size round otherwise, so the size is part of a
    picture's settings. DDIM runs with eta 0, as the paper's does.
    """

    steps: int = 25
    guidance: float = 7.5
    scheduler: str = "ddim"
    negative: str = ""
    width: int | None = None
    height: int | None = None
    batch: int = 8


@dataclass(frozen=True)
class PictureJob:
    """The pictures of one prompt: a file for each seed, in ``folder``."""

    folder: Path
    prompt: str
    seeds: tuple[int, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the order of the seeds."""
        return tuple(picture_file(self.folder, seed) for seed in self.seeds)


def picture_file(folder: Path, seed: int) -> Path:
    """The file of the picture of ``seed``."""
    return folder / f"{seed:010d}.png"


def draw_missing(
    load: Callable[[], Any],
    jobs: Sequence[PictureJob],
    sampling: Sampling,
    processes: Processes | None = None,
    report: Report | None = None,
) -> int:
    """Draw the missing pictures of ``jobs`` with one pipeline; returns the number of batches that this
    process drew.

    Parameters
    ----------
    load:
        Gives the pipeline, on its device; not called where nothing is missing.
    report:
        Called with how many of this process's batches are done, and how many it has.

    Raises
    ------
    NonFiniteError
        A picture is NaN.
    OutputError
        A picture cannot be written.
    """
    processes = processes or Processes()
    batches = [
        (job, job.seeds[first : first + sampling.batch])
        for job in jobs
        for first in range(0, len(job.seeds), sampling.batch)
    ]
    missing = [
        (job, seeds)
        for job, seeds in batches
        if not all(picture_file(job.folder, seed).is_file() for seed in seeds)
    ]
    processes.wait()  # all have looked before any draws
    mine = processes.share(missing)
    if mine:
        _draw(load(), mine, sampling, report)
    processes.wait()
    return len(mine)


def _draw(
    pipeline: Any,
    batches: Sequence[tuple[PictureJob, tuple[int, ...]]],
    sampling: Sampling,
    report: Report | None,
) -> None:
    from PIL import Image

    from paramerge.generation.grid import png
    from paramerge.generation.sampling import Request, draw_batch, set_scheduler

    set_scheduler(pipeline, sampling.scheduler)
    for number, (job, seeds) in enumerate(batches, start=1):
        request = Request(
            (job.prompt,),
            sampling.negative,
            seeds,
            sampling.steps,
            sampling.guidance,
            sampling.width,
            sampling.height,
        )
        make_folder(job.folder)
        for seed, picture in zip(seeds, draw_batch(pipeline, request, job.prompt, seeds), strict=True):
            image = png(Image.fromarray(picture), {"prompt": job.prompt, "seed": str(seed)})
            write_bytes(picture_file(job.folder, seed), image)
        if report is not None:
            report(number, len(batches))
