"""What tools make of click and the registries is committed as they make it, and leaves nothing out."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from types import ModuleType

import pytest
from documents import REPOSITORY

from paramerge.cli.main import COMMANDS
from paramerge.training.config import METHODS
from paramerge.training.experiments.budgets import BUDGETS
from paramerge.training.experiments.registry import EXPERIMENTS

DOCS = REPOSITORY / "docs"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLI, TABLES = tool("cli_reference"), tool("registry_tables")


def test_the_command_line_is_up_to_date() -> None:
    hint = "run: python tools/cli_reference.py > docs/cli.md"
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == CLI.render(), hint


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_an_example_and_every_option_a_help(verb: str) -> None:
    section = (DOCS / "cli.md").read_text().split(f"\n## {verb}\n")[1].split("\n## ")[0]
    assert f"```sh\nparamerge {verb} " in section
    for names, text in CLI.options(verb):
        assert re.sub(r"\[[^\[]*\]$", "", text).strip(), names
        assert f"`{CLI._cell(names)}`" in section


@pytest.mark.parametrize("name", TABLES.DOCUMENTS)
def test_tables_are_up_to_date(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert TABLES.filled(text) == text, "run: python tools/registry_tables.py"


def test_each_table_is_in_a_document_and_has_all_that_is_registered() -> None:
    text = "".join((DOCS / name).read_text() for name in TABLES.DOCUMENTS)
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) == set(TABLES.TABLES)
    for records, table in ((TABLES.FAMILIES, "families"), (TABLES.DIALECTS, "dialects"),
                           (TABLES.ARCHITECTURES, "architectures"), (TABLES.METHODS, "methods"),
                           (TABLES.SCHEMES, "schemes")):  # fmt: skip
        rows = TABLES.TABLES[table]().splitlines()[2:]
        assert len(rows) == len(records)
        ordered = records
        if table == "schemes":  # those that are read come first
            ordered = sorted(records, key=lambda scheme: not scheme.readable)
        for record, row in zip(ordered, rows, strict=True):
            assert all(row.split("|")[n].strip() for n in (1, 2, 3)), row
            assert getattr(record, "label", None) or getattr(record, "key", None) or record.name in row


@pytest.mark.parametrize(
    ("page", "names"), [("training.md", METHODS), ("evaluation.md", EXPERIMENTS), ("evaluation.md", BUDGETS)]
)
def test_what_the_trainer_has_is_documented(page: str, names: Mapping[str, object]) -> None:
    text = (DOCS / page).read_text()
    assert not [name for name in names if f"`{name}`" not in text]


def test_families_have_a_formula() -> None:
    assert all(family.formula for family in TABLES.FAMILIES)
