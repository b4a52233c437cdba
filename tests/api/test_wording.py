"""The library names arguments, the command line flags: of every text of ``paramerge/`` at once."""

from __future__ import annotations

import ast
import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import paramerge
from paramerge.cli.flags import flagged, with_flags
from paramerge.cli.main import COMMANDS, cli, show_error
from paramerge.errors import UsageError
from paramerge.wording import Worded, call, option

SOURCES = sorted(Path(paramerge.__file__).parent.rglob("*.py"))
FLAG = re.compile(r"(?<![\w-])--([a-z]|$)")


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in SOURCES:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """Every string but docstrings (and strings that stand alone)."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node


SPEAK_COMMAND_LINE = ("wording.py", "card.py", "forms.py", "page.py")
"""Marks of arguments, whole command lines (model cards, the window), and the style of a page."""


def test_no_text_of_the_library_names_a_flag() -> None:
    found = [
        f"{path}:{node.lineno}: {node.value}"
        for path, tree in trees()
        if path.name not in SPEAK_COMMAND_LINE
        for node in texts(tree)
        if FLAG.search(str(node.value))
    ]
    assert not found, "\n".join(found)


def flags() -> set[str]:
    """All flags of all verbs."""
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in COMMANDS]
    options = [option for command in commands if command is not None for option in command.params]
    return {flag for option in options for flag in option.opts}


def test_every_argument_that_a_text_names_has_a_flag() -> None:
    known, named = flags(), 0
    for path, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "option" and node.args and isinstance(node.args[0], ast.Constant):
                named += 1
                name = str(node.args[0].value)
                assert name == "adapters" or with_flags(option(name)) in known, f"{path}:{node.lineno}"
            elif node.func.id == "call":
                named += 1
                (verb,) = node.args
                assert isinstance(verb, ast.Constant)
                assert verb.value in COMMANDS
                shown = [with_flags(option(str(keyword.arg))) for keyword in node.keywords]
                assert set(shown) <= known, f"{path}:{node.lineno}"
    assert named > 80


@pytest.mark.parametrize(
    ("mark", "library", "command"),
    [
        (option("allow_unmatched"), "allow_unmatched", "--allow-unmatched"),
        (option("dtype", "bf16"), 'dtype="bf16"', "--dtype bf16"),
        (option("rank", "R"), "rank=R", "--rank R"),
        (option("lora"), "paramerge.Lora", "--lora"),
        (
            option("para", "m.safetensors@0.8"),
            'paramerge.Para("m.safetensors", 0.8)',
            "--para m.safetensors@0.8",
        ),
        (option("kronecker"), "kronecker", "--kronecker"),
        (
            call("extract", tuned="BAKED", base="BASE"),
            "paramerge.extract(tuned=BAKED, base=BASE)",
            "paramerge extract --from BAKED --base BASE",
        ),
    ],
)
def test_a_mark_is_shown_in_two_ways(mark: str, library: str, command: str) -> None:
    error = UsageError(f"before {mark}", where=mark, expected=mark, found=f"{mark} x", hint=f"{mark}, {mark}")
    assert str(error) == (
        f"before {library}\n  where: {library}\n  expected: {library}\n  found: {library} x\n"
        f"  next: {library}, {library}"
    )
    assert with_flags(error.what) == f"before {command}"
    assert {with_flags(text) for text in (error.where or "", error.expected or "")} == {command}
    assert flagged({"a": [error.hint, 1, None]}) == {"a": [f"{command}, {command}", 1, None]}


def test_the_command_line_shows_flags(capsys: pytest.CaptureFixture[str]) -> None:
    error = UsageError(
        "this dtype cannot be chosen", where=option("dtype"), hint=f"leave {option('dtype')} out"
    )
    show_error(error, as_json=False)
    assert "leave --dtype out" in capsys.readouterr().err
    show_error(error, as_json=True)
    assert '"where": "--dtype"' in capsys.readouterr().out


def test_a_worded_text_is_copied_whole() -> None:
    text = Worded(f"add {option('gamma')}")
    for other in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert other == "add gamma"
        assert with_flags(other) == "add --gamma"


def test_text_from_outside_passes_as_it_is() -> None:
    for name in ("a{b}.safetensors", "option('x')", "--flag", "100 %", "\ue000broken", "\ue000a\ue001"):
        shown = UsageError(name, where=name).what
        assert "\ue000" not in shown
        if "\ue000" not in name:
            assert shown == with_flags(shown) == name
