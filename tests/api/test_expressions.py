"""Every regular expression takes time linear in the name: those of Python's engine are counted in steps.

All of them are found in the source, so that none can be left out. What comes from outside, and what many
names are asked for, is run by RE2 (``paramerge/expressions.py``), which is linear by construction.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from regex_steps import steps, trials

import paramerge
from paramerge.models.subsets import SUBSETS

ROOT = Path(paramerge.__file__).parents[1]
ROOMS = {"paramerge": "paramerge", "cli": "paramerge.cli", "training": "paramerge.training"}
SEARCHES = {"search", "sub", "subn", "findall", "finditer", "split"}

MADE_IN_FUNCTIONS = {
    "paramerge/adapters/layer_patterns.py:check_patterns": "refused where PEFT refuses it, never run",
    "paramerge/checkpoints/component_folder.py:_available": "files' names, which the system bounds",
    "paramerge/files/file_kinds.py:_kind": "the kinds of other files, which are tried on their first bytes",
    "paramerge/formats/registry.py:boundaries": "separators escaped",
    "paramerge/models/transformer_blocks.py:numbered_blocks": "paths of blocks in records, escaped",
    "paramerge/models/subsets.py:contains": "SUBSETS, below",
    "training/methods/trained.py:layers_of": "SUBSETS, below",
}
"""Functions that make expressions out of other texts, and why that is well."""


def sources() -> Iterator[tuple[Path, str, ast.Module]]:
    for room, package in ROOMS.items():
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT / room).with_suffix("").parts
            module = ".".join((package, *parts)).removesuffix(".__init__")
            yield path, module, ast.parse(path.read_text())


def named_calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Calls of ``re.NAME``, each with the function that it stands in."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef) else function
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr != "escape"
        ):
            yield inside, node
        yield from named_calls(node, inside)


def searched(tree: ast.Module) -> set[str]:
    """The names of a module that methods of patterns are called on which look at every place of a text."""
    return {
        ast.unparse(node.func.value).partition("[")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES
    }


def held(value: object, depth: int = 3) -> Iterator[re.Pattern[str]]:
    """The patterns in a value of a module."""
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        yield value
    elif depth and isinstance(value, tuple | list | Mapping):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from held(inner, depth - 1)
    elif depth and hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from held(getattr(value, name), depth - 1)


def everything() -> dict[str, tuple[re.Pattern[str], bool]]:
    """All expressions that Python's engine runs, by where they stand; whether they are searched for."""
    found: dict[str, tuple[re.Pattern[str], bool]] = {}
    for _, module, tree in sources():
        calls = list(named_calls(tree))
        for _, call in calls:
            if call.func.attr != "compile" and isinstance(call.args[0], ast.Constant):  # type: ignore[attr-defined]
                text = call.args[0].value
                found[f"{module}:{call.lineno}"] = re.compile(text), call.func.attr in SEARCHES  # type: ignore[attr-defined]
        if not calls:
            continue
        names = searched(tree)
        for name, value in vars(importlib.import_module(module)).items():
            container = not isinstance(value, re.Pattern)
            for number, pattern in enumerate(held(value)):
                by_name = name in names or (container and "pattern" in names)
                found[f"{module}:{name}[{number}]"] = pattern, by_name
    for name, subset in SUBSETS.items():
        found[f"SUBSETS[{name}]"] = re.compile(subset.pattern), False
    return found


EXPRESSIONS = everything()


def growth(pattern: re.Pattern[str], search: bool) -> float:
    """The steps of a further character in a longer text: 1 where they grow with it, 2 with its square."""
    texts = zip(*(trials(pattern, times=times) for times in (1, 2, 4)), strict=True)
    counts = ([steps(pattern, text, search=search) for text in each] for each in texts)
    return max((fourth - second) / (2 * (second - first) + 20) for first, second, fourth in counts)


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_expressions_take_steps_in_proportion_to_the_name(where: str) -> None:
    pattern, search = EXPRESSIONS[where]
    assert growth(pattern, search) < 1.4, pattern.pattern


@pytest.mark.parametrize(
    ("text", "search"),
    [
        (r"(a+)+b", False),
        (r".*x.*y", False),
        (r"\w+a\w+", False),
        (r"(?:a|a)*b", False),
        (r"\w+\.x", True),
    ],
)
def test_expressions_that_go_back_over_the_name_are_told(text: str, search: bool) -> None:
    pattern = re.compile(text)
    if text in (r"(a+)+b", r"(?:a|a)*b"):  # exponential: shorter texts tell it
        assert steps(pattern, "a" * 14) > 50 * steps(pattern, "a" * 7)
    else:
        assert growth(pattern, search) > 1.4


@pytest.mark.parametrize(
    "pattern", ["*", "*a*a*a*a*a*b", "unet.*attn?.to_[qkv]", "*[a-c]*[a-c]*d", "[!a]*x*"]
)
def test_globs_take_steps_in_proportion_to_the_name(pattern: str) -> None:
    """What ``only`` takes is matched by fnmatch, whose stars never go back over what they passed."""
    assert growth(re.compile(fnmatch.translate(pattern)), search=False) < 1.4


def test_the_steps_count_what_the_engine_does() -> None:
    """The counted engine matches what Python's does."""
    for pattern, _ in EXPRESSIONS.values():
        for text in list(trials(pattern, 24))[::17]:
            ours: list[bool] = []
            engine: Any = sys.modules["regex_steps"]._Engine(text, pattern.flags)
            nodes = sys.modules["regex_steps"]._parsed(pattern)
            ours.append(engine.run(nodes, 0, 0, lambda place, text=text: place == len(text)))
            assert ours == [pattern.fullmatch(text) is not None], (pattern.pattern, text)


def test_no_expression_is_made_of_other_texts_unseen() -> None:
    found = {
        f"{path.relative_to(ROOT).as_posix()}:{function}"
        for path, _, tree in sources()
        for function, call in named_calls(tree)
        if function and not isinstance(call.args[0], ast.Constant)
    }
    assert found == MADE_IN_FUNCTIONS.keys()
