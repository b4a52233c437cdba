"""Every model, in both layouts, takes a LoRA in every spelling: each row changes as the documents say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dialect_files import SPELLINGS
from model_matrix import EXACT, LAYOUTS, MODELS, row_titles, verdicts

TABLE = Path(__file__).resolve().parents[2] / "docs" / "layouts.md"


def documented() -> dict[str, list[str]]:
    """The cells of the table in the documents, by the titles of its rows."""
    text = TABLE.read_text(encoding="utf-8")
    found = re.search(r"<!-- matrix -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert found is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].strip().splitlines()]
    return {title: cells for title, *cells in rows[2:]}


@pytest.mark.parametrize("place", range(len(MODELS)))
def test_some_cells_of_the_table(place: int, tmp_path: Path) -> None:
    """Others for each model, so that all spellings are tried."""
    some = tuple(SPELLINGS)[place % 5 :: 5]
    layouts = ("ComfyUI's", "diffusers") if place % 2 else ("bare", "diffusers")
    check(*MODELS[place], some, layouts, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), MODELS)
def test_every_cell_of_the_table(name: str, number: int, tmp_path: Path) -> None:
    check(name, number, tuple(SPELLINGS), LAYOUTS, tmp_path)


def check(name: str, number: int, spellings: tuple[str, ...], layouts: tuple[str, ...], folder: Path) -> None:
    titles, table = row_titles(name, number), documented()
    found = list(verdicts(name, number, spellings, layouts, folder))
    assert len(found) == len(spellings) * len(layouts)
    for layout, who, verdict in found:
        cell = table[titles[layout]][[*SPELLINGS].index(who)]
        assert verdict == cell == EXACT, (layout, who)
