"""The house has floors: a room uses what lies below it, never what lies above or beside it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import paramerge
from paramerge import training

PACKAGE = Path(paramerge.__file__).parent

FLOORS = (
    ("deprecation", "expressions", "version", "wording"),
    ("errors",),
    ("shipped",),
    ("missing_files",),
    ("algebra", "arguments", "interpretation", "listing", "plugins", "summarised", "system_faults"),
    ("kinds", "old_names", "regular_files"),
    ("strict_json", "strict_toml"),
    ("files",),
    ("models", "storage"),
    ("adapters",),
    ("formats", "sizes"),
    ("checkpoints",),
    ("resolve",),
    ("apply",),
    ("bake", "extract", "inspect", "peft"),
    ("merge",),
    ("compare", "convert", "generation", "replay", "resize"),
    ("explain", "verify"),
    ("__init__",),
    ("training",),
    ("cli",),
    ("ui",),
)
"""The rooms of ``paramerge``, from the ground up; each may import what lies on lower floors alone."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """All modules of the package, ``cli`` and ``training`` aside, by their full names."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)] = path
    return found


MODULES = modules()


def imported(node: ast.AST) -> Iterator[str]:
    """The modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name in MODULES or _is_room(name) else node.module or "" for name in names]
    else:
        return
    yield from (name for name in names if name.split(".")[0] == "paramerge")


def _is_room(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 2 and parts[1] in FLOOR


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def at_import(tree: ast.Module) -> Iterator[str]:
    """What a module imports as it is imported: not in a function, not for type checkers alone."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            for inner in ast.walk(node):
                yield from imported(inner)


def test_every_room_has_a_floor() -> None:
    found = {room(module) for module in MODULES}
    assert found - {"cli", "training"} == FLOOR.keys() - {"cli", "training"}


@pytest.mark.parametrize(
    "own", sorted({room(module) for module in MODULES}, key=lambda own: (FLOOR[own], own))
)
def test_a_room_imports_from_lower_floors_alone(own: str) -> None:
    """In functions and for type checkers, too: an arrow upward is one however late it is followed."""
    upward = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if room(module) == own
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported(node)
        if room(name) != own and FLOOR[room(name)] >= FLOOR[own]
    ]
    assert not upward


def test_the_trainer_imports_nothing_of_the_command_line() -> None:
    """But for its entry point, ``python -m paramerge.training``, which is the verb."""
    folder = Path(training.__path__[0])
    upward = [
        f"{path.name} imports {name}"
        for path in folder.rglob("*.py")
        if path.name != "__main__.py"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported(node)
        if room(name) == "cli"
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    uses = {
        name: set(at_import(ast.parse(path.read_text()))) & MODULES.keys() for name, path in MODULES.items()
    }
    while free := [name for name, used in uses.items() if not used]:
        for name in free:
            del uses[name]
        for used in uses.values():
            used.difference_update(free)
    assert not uses, f"a circle is among {sorted(uses)}"


def defined(path: Path) -> set[str]:
    """The names that a module defines, as functions, classes or values."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


DEFINED = {module: defined(path) for module, path in MODULES.items() if path.name != "__init__.py"}


def test_names_are_imported_from_where_they_are_defined_and_are_not_private() -> None:
    """So no module needs a list of its names: what others may take has no underscore, and its own place."""
    elsewhere, private = [], []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            for alias in node.names if isinstance(node, ast.ImportFrom) and node.module in DEFINED else ():
                said = f"{module} takes {alias.name} from {node.module}"
                if alias.name not in DEFINED[node.module]:
                    elsewhere.append(said)
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    private.append(said)
    assert not elsewhere and not private
