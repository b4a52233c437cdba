"""The paths of the pictures of a plan's cells, and of its adapters."""

from __future__ import annotations

import hashlib
from pathlib import Path

from paramerge.training.evaluation.drawing import PictureJob
from paramerge.training.experiments.plan import Cell, Plan

__all__ = ["picture_job", "trained_folder"]


def picture_job(plan: Plan, cell: Cell, folder: Path) -> PictureJob:
    """The pictures of ``cell``, of all runs, in the experiment's ``folder``."""
    prompt = hashlib.sha256(cell.prompt.encode()).hexdigest()[:8]
    place = folder / "pictures" / f"{cell.variant.identity()}-{prompt}"
    return PictureJob(place, cell.prompt, tuple(seed for run in plan.seeds(cell.count) for seed in run))


def trained_folder(plan: Plan, output: Path) -> Path:
    """The adapters of the plan's model, which all experiments in ``output`` share."""
    return output / "trained" / plan.model.resolve().name.removesuffix(".safetensors")
