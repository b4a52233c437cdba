"""docs/api.md is what the tool makes of the stub and the docstrings, and says something of everything."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import paramerge

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY / "docs" / "api.md"
VERBS = (
    "bake",
    "plan_bake",
    "merge",
    "convert",
    "extract",
    "resize",
    "compare",
    "inspect",
    "sizes",
    "replay",
    "explain",
)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_reference", REPOSITORY / "tools" / "api_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(tool: ModuleType) -> None:
    hint = "run: python tools/api_reference.py > docs/api.md"
    assert REFERENCE.read_text(encoding="utf-8") == tool.render(), hint


def test_every_public_name_is_in_the_reference_once(tool: ModuleType) -> None:
    headings = re.findall(r"^### (\w+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(name for name in tool.public_names() if name != "__version__")


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_of_a_verb_is_documented(verb: str) -> None:
    function = getattr(paramerge, verb)
    text = inspect.getdoc(function) or ""
    if verb == "bake":  # its other options are those of the plan
        text += inspect.getdoc(paramerge.plan_bake) or ""
    told = {name for line in re.findall(r"^(\w[\w, ]*):$", text, re.MULTILINE) for name in line.split(", ")}
    assert set(inspect.signature(function).parameters) - told <= {"path", "interpretation"}
    assert "Raises\n------" in text
