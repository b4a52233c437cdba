"""An evaluation in a terminal."""

from __future__ import annotations

from rich.console import Console

from paramerge.cli.render import out, shown
from paramerge.cli.tables import plain_table
from paramerge.training.evaluation.evaluate import Results
from paramerge.training.evaluation.measuring import METRICS


def show_results(results: Results, console: Console = out) -> None:
    """A row for each set; below it the meaning of each column and the model that computed it."""
    metrics = [metric for metric in METRICS if any(metric in row.values for row in results.rows)]
    table = plain_table("", ">pictures", *(f">{metric}" for metric in metrics))
    for row in results.rows:
        cells = [str(row.values[metric]) if metric in row.values else "" for metric in metrics]
        table.add_row(shown(row.label), str(row.pictures), *cells)
    console.print(table)
    for metric in metrics:
        console.print(f"[dim]{metric}: {METRICS[metric]}; by {shown(results.models[metric])}[/dim]")
    runs = max((len(value.runs) for row in results.rows for value in row.values.values()), default=1)
    if runs > 1:
        console.print(f"[dim]±: standard deviation of {runs} runs with other seeds[/dim]")
    console.print(
        f"[bold]{shown(results.folder / 'results.jsonl')}[/bold]  and results.png, pictures, records"
    )
