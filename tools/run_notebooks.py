"""Run notebooks anew and write them back as they are committed: ``tools/run_notebooks.py 05_evaluation``.

A notebook runs from top to bottom in a fresh kernel and an empty folder, with one thread. What differs
between equal runs (times of cells, metadata, where a stream was cut) is taken out; seconds that a cell itself
prints stay.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from paramerge.files.writer import write_bytes

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook: Any, timeout: int) -> None:
    """Run all cells of ``notebook``, whose outputs are replaced.

    Raises
    ------
    CellExecutionError
        A cell failed.
    """
    for cell in _code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=timeout, startup_timeout=timeout, resources=resources).execute()


def normalise(notebook: Any) -> None:
    """Take out what differs between equal runs; cells are numbered.

    Raises
    ------
    click.ClickException
        A cell wrote to stderr: such words are no part of a notebook, and hiding them would help nobody.
    """
    notebook.metadata = nbformat.from_dict(_METADATA)
    for place, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{place:02d}", {}
    for cell in _code_cells(notebook):
        outputs: list[Any] = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise click.ClickException(f"{cell.id} writes to stderr:\n{output.text}")
            if "metadata" in output:
                output.metadata = {}
            before = outputs[-1] if outputs else {}
            if output.get("name") and before.get("name") == output.name:
                before.text += output.text
            else:
                outputs.append(output)
        cell.outputs = outputs


def _code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--timeout", type=click.IntRange(1), default=600, show_default=True, help="Seconds for a cell.")
def main(names: tuple[str, ...], timeout: int) -> None:
    """Run the notebooks NAMES (such as 03_training) and write them back."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in names:
        path = NOTEBOOKS / f"{name.removesuffix('.ipynb')}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        began = time.monotonic()
        try:
            execute(notebook, timeout)
        except CellExecutionError as error:
            raise click.ClickException(f"{path.name}: {error}") from error
        normalise(notebook)
        nbformat.validate(notebook)
        write_bytes(path, (nbformat.writes(notebook, indent=1) + "\n").encode())
        size = path.stat().st_size / 1000
        sys.stdout.write(f"{path.name}: {time.monotonic() - began:.0f} s, {size:.0f} kB\n")


if __name__ == "__main__":
    main()
