"""What ``tools/run_notebooks.py`` takes out of an executed notebook, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

TOOL = Path(__file__).resolve().parents[2] / "tools" / "run_notebooks.py"


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("run_notebooks", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def executed(cut: int, time: str) -> Any:
    """A notebook as a kernel leaves it: its stream cut at ``cut``, with the time of the run."""
    text, picture = "one\ntwo\n", {"image/png": "iVBORw0="}
    streams = [new_output("stream", name="stdout", text=part) for part in (text[:cut], text[cut:]) if part]
    shown = new_output("display_data", data=picture, metadata={"needs_background": "light"})
    cell = new_code_cell("print()", outputs=[*streams, shown], execution_count=1)
    cell.metadata = {"execution": {"iopub.execute_input": time}}
    return new_notebook(cells=[new_markdown_cell("# A title"), cell], metadata={"signature": time})


def test_equal_runs_give_equal_notebooks(tool: Any) -> None:
    first, second = executed(4, "10:00"), executed(8, "11:00")
    assert nbformat.writes(first) != nbformat.writes(second)
    for notebook in (first, second):
        tool.normalise(notebook)
        nbformat.validate(notebook)
    assert nbformat.writes(first) == nbformat.writes(second)
    assert [output.output_type for output in first.cells[1].outputs] == ["stream", "display_data"]
    assert first.cells[1].outputs[0].text == "one\ntwo\n"
    assert first.cells[1].execution_count == 1


def test_words_on_stderr_are_refused(tool: Any) -> None:
    notebook = executed(4, "10:00")
    notebook.cells[1].outputs.append(new_output("stream", name="stderr", text="a warning"))
    with pytest.raises(click.ClickException, match="cell-01 writes to stderr:\na warning"):
        tool.normalise(notebook)
