"""The figures: bars, text against image alignment, predicted against measured loss, and example pictures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paramerge.training.evaluation.measuring import METRICS
from paramerge.training.evaluation.sets import read_pictures
from paramerge.training.experiments.places import picture_job
from paramerge.training.experiments.plan import Experiment, Plan
from paramerge.training.experiments.verdict import Line, interval, subject_means

__all__ = ["example_grid", "figure_of", "row_values"]

_ROWS, _COLUMNS = 24, 6


def figure_of(experiment: Experiment, lines: Sequence[Line], models: Mapping[str, str]) -> bytes:
    """A PNG of the kind that the experiment asks for; columns for tuning are not in it."""
    lines = [line for line in lines if not line.tuning]
    if experiment.figure == "alignment":
        return _alignment(lines, models)
    if experiment.figure == "order":
        return _order(lines)
    return _bars(lines, models)


def row_values(lines: Sequence[Line], row: str, metric: str) -> tuple[float, float] | None:
    """The mean over subjects and the half-width of its 95% interval; None where it was not measured."""
    values = list(subject_means(lines, row, metric).values())
    return interval(values) if values else None


def _bars(lines: Sequence[Line], models: Mapping[str, str]) -> bytes:
    rows = list(dict.fromkeys(line.row for line in lines))
    metrics = [metric for metric in METRICS if any(metric in line.metrics for line in lines)]
    metrics += ["worse"] if any("worse" in line.metrics for line in lines) else []
    figure = _figure(1.5 + 3.5 * len(metrics), 1.6 + 0.3 * len(rows))
    panels = figure.subplots(1, max(1, len(metrics)), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=False):
        for place, row in enumerate(rows):
            found = row_values(lines, row, metric)
            if found is not None:
                error = found[1] if np.isfinite(found[1]) else 0.0
                axes.barh(place, found[0], xerr=error, capsize=3, color="tab:blue")
        title = METRICS.get(metric, "image score of the subject that is less there")
        by = models.get(metric, models.get("image", ""))
        axes.set_title("\n".join(textwrap.fill(text, 36) for text in (title, by)), fontsize=8)
        axes.set_yticks(range(len(rows)), [textwrap.shorten(row, 48) for row in rows], fontsize=7)
    panels[0].invert_yaxis()
    return _png(figure)


def _alignment(lines: Sequence[Line], models: Mapping[str, str]) -> bytes:
    """The paper's Figure 3: further right is nearer to the subject, higher up nearer to the text."""
    across = [metric for metric in ("perceptual", "image") if any(metric in x.metrics for x in lines)]
    figure = _figure(1 + 6 * max(1, len(across)), 6)
    panels = figure.subplots(1, max(1, len(across)), squeeze=False)[0]
    for axes, metric in zip(panels, across, strict=False):
        for row in dict.fromkeys(line.row for line in lines):
            x, y = row_values(lines, row, metric), row_values(lines, row, "text")
            if x is None or y is None:
                continue
            bars = [error if np.isfinite(error) else 0.0 for error in (x[1], y[1])]
            axes.errorbar(x[0], y[0], xerr=bars[0], yerr=bars[1], marker="o", linewidth=0.6)
            axes.annotate(row, (x[0], y[0]), fontsize=6, xytext=(3, 3), textcoords="offset points")
        axes.set_xlabel(f"{METRICS[metric]}\n{models[metric]}", fontsize=8)
        axes.set_ylabel(f"{METRICS['text']}\n{models.get('text', '')}", fontsize=8)
    return _png(figure)


def _order(lines: Sequence[Line]) -> bytes:
    figure = _figure(7, 5)
    axes = figure.subplots()
    points = [line for line in lines if "predicted loss" in line.metrics]
    for row in dict.fromkeys(line.row for line in points):
        own = [line for line in points if line.row == row]
        axes.plot(
            [line.metrics["predicted loss"] for line in own],
            [line.metrics["measured loss"] for line in own],
            "o",
            label=row,
        )
    axes.plot([0, 1], [0, 1], "k:", linewidth=0.8)
    axes.set_xlabel("predicted: share of the LoRA that the PaRa removes, ||Q^T B A|| / ||B A||")
    axes.set_ylabel("measured: share of its effect on the pixels that is missing")
    if points:
        axes.legend(fontsize=7)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def example_grid(plan: Plan, folder: Path) -> bytes:
    """The first pictures of each row on the first column that is not for tuning."""
    from paramerge.generation.grid import Row, labelled_grid, png

    rows: dict[str, Row] = {}
    shown = min(cell.count for cell in plan.cells)
    for cell in plan.cells:
        if cell.row not in rows and not cell.tuning and len(rows) < _ROWS:
            files = picture_job(plan, cell, folder).files[:_COLUMNS]
            rows[cell.row] = Row(f"{cell.row}: {cell.prompt}", list(read_pictures(files)))
    columns = [f"seed {seed}" for run in plan.seeds(shown) for seed in run][:_COLUMNS]
    return png(labelled_grid(list(rows.values()), columns), {"experiment": plan.experiment.name})
