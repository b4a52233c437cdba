"""The texts of the code: docstrings begin with a noun or a verb, errors are no sentences."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for room in ("paramerge", "cli", "training") for path in (ROOT / room).rglob("*.py"))
RIDDLES = (
    *("What", "How", "Who", "Whose", "Which", "Where", "When"),
    *("Those", "These", "That", "As", "Also", "Of", "It"),
)
"""Words that leave open what the text is about."""


def documentation(tree: ast.AST) -> Iterator[ast.Constant]:
    """Docstrings, and the texts below attributes."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.value


def faults(tree: ast.AST) -> Iterator[ast.expr]:
    """The first argument of every error that is made."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
            yield from node.args[:1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_say_what_they_are_about(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for text in documentation(tree):
        first = inspect.cleandoc(str(text.value)).split(maxsplit=1)[0]
        assert first not in RIDDLES, f"{path}:{text.lineno}: {first} ..."
    for fault in faults(tree):
        parts = fault.values if isinstance(fault, ast.JoinedStr) else [fault]
        for part in parts[:1] + parts[-1:]:
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value:
                place = f"{path}:{part.lineno}: {part.value}"
                assert part is not parts[-1] or not part.value.endswith("."), place
                word = part.value.split()[0] if part.value.split() else "a"
                assert part is not parts[0] or not word.istitle() or len(word) == 1, place
