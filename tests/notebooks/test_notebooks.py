"""The notebooks run from top to bottom; what is committed of them is small, complete and without paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
LARGEST = 500_000
MACHINE_PATHS = re.compile(r"/home/|/tmp/|/root/|/work/|/Users/|[A-Z]:\\\\")


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> set[str]:
    """What a cell shows: text that is printed, pictures, tables."""
    shown = set()
    for output in cell.outputs:
        shown |= {output.name} if output.output_type == "stream" else set(output.get("data", {}))
    return shown


def test_there_are_notebooks() -> None:
    assert "01_theorems.ipynb" in {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(fresh, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert [kinds(cell) for cell in code_cells(fresh)] == [kinds(cell) for cell in code_cells(committed)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_valid_executed_and_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert any("image/png" in kinds(cell) for cell in code_cells(notebook))
    assert not any("stderr" in kinds(cell) for cell in code_cells(notebook))
    assert path.stat().st_size < LARGEST
    for cell in notebook.cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            texts += [output.get("text", ""), str(output.get("data", {}).get("text/plain", ""))]
        assert not MACHINE_PATHS.search("\n".join(texts))
