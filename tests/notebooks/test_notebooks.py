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


SHORTER = {
    "03_training": {
        "steps=120": "steps=6",
        "np.arange(1, 121)": "np.arange(1, 7)",
        "save_every=100": "save_every=4",
        "step-00000100": "step-00000004",
        "steps=15": "steps=2",
    },
    "04_bake_and_order": {
        "steps=12,": "steps=1,",
        "ranks, foretold, measured, shown = (1, 2, 4, 8)": "ranks, foretold, measured, shown = (1, 8)",
        "(0.0, 0.5, 1.0), (0.0, 0.4, 0.8, 1.2)": "(0.0, 1.0), (0.0, 0.8)",
    },
    "05_evaluation": {'BUDGETS["smoke"]': '__import__("dataclasses").replace(BUDGETS["smoke"], ranks=(1,))'},
}
"""What makes a notebook of minutes one of seconds: the same cells on fewer steps."""


def run(path: Path, folder: Path, replaced: dict[str, str]) -> None:
    """Run the notebook's cells in ``folder``; each shows what the committed one shows."""
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    source = "".join(cell.source for cell in code_cells(fresh))
    assert all(text in source for text in replaced)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
        for text, shorter in replaced.items():
            cell.source = cell.source.replace(text, shorter)
    client = NotebookClient(fresh, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    assert [kinds(cell) for cell in code_cells(fresh)] == [kinds(cell) for cell in code_cells(committed)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run(path, tmp_path, SHORTER.get(path.stem, {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTER)
def test_a_long_notebook_runs_as_it_is_committed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run(next(path for path in NOTEBOOKS if path.stem == name), tmp_path, {})


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
