"""The measurements as a picture: bars with error bars, a panel for each metric."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

from paramerge.training.evaluation.measuring import METRICS
from paramerge.training.evaluation.summary import Summary

__all__ = ["bars"]

_WIDEST_LABEL = 34


def bars(rows: Sequence[Summary], models: Mapping[str, str]) -> bytes:
    """A PNG; over each panel are the metric, in words, and the model that computed it."""
    from matplotlib.figure import Figure

    metrics = [metric for metric in METRICS if any(metric in row.values for row in rows)]
    labels = [textwrap.fill(row.label, _WIDEST_LABEL) for row in rows]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(1.5 + 3.5 * len(metrics), 1.6 + 0.35 * lines), layout="constrained")
    panels = figure.subplots(1, max(1, len(metrics)), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=False):
        shown = [(place, row.values[metric]) for place, row in enumerate(rows) if metric in row.values]
        axes.barh(
            [place for place, _ in shown],
            [value.mean for _, value in shown],
            xerr=[value.deviation or 0.0 for _, value in shown],
            capsize=3,
        )
        axes.set_title(
            f"{textwrap.fill(METRICS[metric], 36)}\n{textwrap.fill(models[metric], 36)}", fontsize=8
        )
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
    panels[0].invert_yaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
