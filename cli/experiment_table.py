"""The outcome of an experiment in a terminal."""

from __future__ import annotations

from rich.console import Console

from paramerge.cli.render import out, shown
from paramerge.cli.tables import plain_table
from paramerge.training.evaluation.summary import Value
from paramerge.training.experiments.figures import row_values
from paramerge.training.experiments.run import Outcome

_COLOURS = {"holds": "green", "does not hold": "red", "cannot be told": "yellow"}
_FACTS = ("parameters", "bytes", "seconds")


def show_outcome(outcome: Outcome, console: Console = out) -> None:
    """A row's means over subjects with the deviations of runs, and a verdict for each claim."""
    lines = [line for line in outcome.lines if not line.tuning]
    metrics = list(dict.fromkeys(key for line in lines for key in line.metrics))
    table = plain_table("", *metrics)
    for row in dict.fromkeys(line.row for line in lines):
        table.add_row(shown(row), *(_value(row_values(lines, row, m), m) for m in metrics))
    console.print(table)
    for metric, model in outcome.models.items():
        console.print(f"[dim]{metric}: by {shown(model)}[/dim]")
    console.print(
        "[dim]±: standard deviation of runs with other seeds; in verdicts, 95% over subjects[/dim]\n"
    )
    for name, words in outcome.diverged.items():
        console.print(f"[yellow]{shown(name)}: {shown(words)}; left out[/yellow]")
    for verdict in outcome.verdicts:
        colour = _COLOURS[verdict.verdict]
        console.print(
            f"[{colour}]{verdict.verdict}[/{colour}]  {shown(verdict.claim.text)} ({verdict.claim.where})"
        )
        console.print(f"    [dim]{shown(verdict.reason)}[/dim]")
    console.print(
        f"[bold]{shown(outcome.folder)}[/bold]  results.jsonl, summary.json, figure.png, examples.png"
    )


def _value(found: Value | None, metric: str) -> str:
    if found is None:
        return ""
    return f"{found.mean:,.0f}" if metric in _FACTS else str(found)
