"""The index of theorems: it has all of them, and what it names is there."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest
from documents import REPOSITORY

ROWS = {
    cells[1].strip(): "|".join(cells)
    for line in (REPOSITORY / "docs" / "theorems.md").read_text().splitlines()
    if (cells := line.split("|")) and re.fullmatch(r"\| [TR]\d+[a-z]?", "|".join(cells[:2]).rstrip())
}
FUNCTION = re.compile(r"`(paramerge[\w.]+):(\w+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+\*?)`")


@cache
def functions_of(path: Path) -> tuple[str, ...]:
    tree = ast.parse(path.read_text())
    names = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return tuple(name for name in names if name.startswith("test_"))


def test_every_theorem_and_every_finding_has_a_row() -> None:
    plain = {name for name in ROWS if name[-1].isdigit()}
    assert plain == {*(f"T{n}" for n in range(1, 15)), *(f"R{n}" for n in range(1, 7))}


@pytest.mark.parametrize("name", ROWS)
def test_what_a_row_names_is_there(name: str) -> None:
    functions, tests = FUNCTION.findall(ROWS[name]), TEST.findall(ROWS[name])
    assert "not built yet" in ROWS[name] or (functions and tests)
    for module, function in functions:
        assert hasattr(importlib.import_module(module), function)
    for path, pattern in tests:
        start = pattern.removesuffix("*")
        found = [test for test in functions_of(REPOSITORY / path) if test.startswith(start)]
        assert found if pattern.endswith("*") else pattern in found


def test_no_test_of_a_theorem_is_missing() -> None:
    """``test_t3e_t3r_...`` is of T3e, in whose row a pattern takes it in."""
    for path in (
        *(REPOSITORY / "tests" / "theorems").glob("*.py"),
        *(REPOSITORY / "tests" / "merge").glob("*.py"),
    ):
        for test in functions_of(path):
            if label := re.match(r"test_t(\d+[a-z]?)_", test):
                patterns = TEST.findall(ROWS[f"T{label[1]}"])
                where = str(path.relative_to(REPOSITORY))
                assert any(p == where and test.startswith(t.rstrip("*")) for p, t in patterns), test
