"""The figures: bars, text against image alignment, predicted against measured loss, and example pictures."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paramerge.training.evaluation.measuring import METRICS
from paramerge.training.evaluation.sets import read_pictures
from paramerge.training.evaluation.summary import Value, value_of
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.parts import BEST
from paramerge.training.experiments.places import picture_job
from paramerge.training.experiments.plan import Experiment, Plan
from paramerge.training.experiments.rates import split_row

__all__ = ["example_grid", "figure_of", "rate_curves", "row_values"]

_ROWS, _COLUMNS = 24, 6


def figure_of(experiment: Experiment, lines: Sequence[Line], models: Mapping[str, str]) -> bytes:
    """A PNG of the kind that the experiment asks for; columns for tuning are not in it."""
    lines = [line for line in lines if not line.tuning]
    if experiment.figure == "alignment":
        return _alignment(lines, models)
    if experiment.figure == "order":
        return _order(lines)
    if experiment.figure == "rates":
        return _rates(lines, models)
    return _bars(lines, models)


def row_values(lines: Sequence[Line], row: str, metric: str) -> Value | None:
    """The mean over columns, and its deviation over runs, which is the paper's kind of error bar.

    None where it was not measured. Verdicts go by differences over subjects and not by these bars.
    """
    runs: dict[int, list[float]] = {}
    for line in lines:
        if line.row == row and metric in line.metrics:
            runs.setdefault(line.run, []).append(line.metrics[metric])
    return value_of([float(np.mean(values)) for values in runs.values()]) if runs else None


def rate_curves(lines: Sequence[Line]) -> dict[str, dict[float, Value]]:
    """The mean of image and text score by row and by learning rate, rates ascending."""
    curves: dict[str, dict[float, Value]] = {}
    for row in dict.fromkeys(line.row for line in lines):
        if (found := row_values(lines, row, "both")) is not None:
            name, rate = split_row(row)
            curves.setdefault(name, {})[rate] = found
    return {name: dict(sorted(points.items())) for name, points in curves.items()}


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
                axes.barh(place, found.mean, xerr=found.deviation or 0.0, capsize=3, color="tab:blue")
        title = METRICS.get(metric, "image score of the subject that is less there")
        by = models.get(metric, models.get("image", ""))
        axes.set_title("\n".join(textwrap.fill(text, 36) for text in (title, by)), fontsize=8)
        axes.set_yticks(range(len(rows)), [textwrap.shorten(row, 48) for row in rows], fontsize=7)
    panels[0].invert_yaxis()
    return _png(figure)


def _alignment(lines: Sequence[Line], models: Mapping[str, str]) -> bytes:
    """The paper's Figure 3: further right is nearer to the subject, higher up nearer to the text."""
    across = [metric for metric in ("perceptual", "image") if any(metric in x.metrics for x in lines)]
    rows = list(dict.fromkeys(line.row for line in lines))
    rows = [row for row in rows if row.endswith(BEST)] or rows  # at each one's best, where that is known
    figure = _figure(1 + 6 * max(1, len(across)), 5)
    panels = figure.subplots(1, max(1, len(across)), squeeze=False)[0]
    for axes, metric in zip(panels, across, strict=False):
        for place, row in enumerate(rows):
            x, y = row_values(lines, row, metric), row_values(lines, row, "text")
            if x is not None and y is not None:
                bars = (x.deviation or 0.0, y.deviation or 0.0)
                marker, colour = "os^Dv"[place // 10 % 5], f"C{place % 10}"
                axes.errorbar(
                    x.mean, y.mean, xerr=bars[0], yerr=bars[1], marker=marker, color=colour, label=row
                )
        axes.set_xlabel(f"{METRICS[metric]}\n{models[metric]}", fontsize=8)
        axes.set_ylabel(f"{METRICS['text']}\n{models.get('text', '')}", fontsize=8)
    if across:
        panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
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
    share = np.linspace(0, 1, 201)
    # of a LoRA that loses the share s in norm, sqrt(1 - s^2) is left: the two parts are orthogonal
    axes.plot(share, 1 - np.sqrt(1 - share**2), "k:", linewidth=0.8, label="if pixels followed weights")
    axes.set_xlabel("predicted: share of the LoRA that the PaRa removes, ||Q^T B A|| / ||B A||")
    axes.set_ylabel("measured: share of its effect on the pixels that is missing")
    if points:
        axes.legend(fontsize=7)
    return _png(figure)


def _rates(lines: Sequence[Line], models: Mapping[str, str]) -> bytes:
    """A curve over the learning rates for each method."""
    curves = rate_curves(lines)
    figure = _figure(8, 5)
    axes = figure.subplots()
    for place, (method, points) in enumerate(curves.items()):
        means = [value.mean for value in points.values()]
        axes.semilogx(list(points), means, f"{'os^Dv'[place % 5]}-", label=method)
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"mean of image and text score\n{models.get('image', '')}", fontsize=8)
    if curves:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def example_grid(plan: Plan, folder: Path) -> bytes:
    """The first pictures of each row on the first column that is not for tuning.

    Rows that are the same pictures, measured against several subjects, are one.
    """
    from paramerge.generation.grid import Row, labelled_grid, png

    rows: dict[str, Row] = {}
    shown = min((cell.count for cell in plan.cells), default=0)
    seeds = [seed for run in plan.seeds(shown) for seed in run][:_COLUMNS]
    sharing = Counter((cell.variant, cell.prompt) for cell in plan.cells)
    for cell in plan.cells:
        several = sharing[cell.variant, cell.prompt] > 1
        name = cell.row.rpartition(" | ")[0] if several else cell.row
        if name not in rows and not cell.tuning and len(rows) < _ROWS:
            job = picture_job(plan, cell, folder)
            files = [job.files[job.seeds.index(seed)] for seed in seeds]
            rows[name] = Row(f"{name}: {cell.prompt}", list(read_pictures(files)))
    return png(
        labelled_grid(list(rows.values()), [f"seed {seed}" for seed in seeds]),
        {"experiment": plan.experiment.name},
    )
