"""The reference of the command line, docs/cli.md: every verb and option with its help, from click.

    python tools/cli_reference.py > docs/cli.md

A test holds the file to what this prints.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import click

from paramerge.cli.flags import with_flags
from paramerge.cli.main import COMMANDS, cli

_HEAD = """# The command line

Made by `python tools/cli_reference.py > docs/cli.md` from what `paramerge VERB --help` prints.
"""


def render() -> str:
    """The whole reference."""
    verbs = "\n".join(f"- [`{verb}`](#{verb}): {command(verb).get_short_help_str(200)}" for verb in COMMANDS)
    return "\n".join([_HEAD, verbs, "", *map(_entry, COMMANDS)]).rstrip() + "\n"


def command(verb: str) -> click.Command:
    """The command of a verb."""
    found = cli.get_command(click.Context(cli), verb)
    assert found is not None
    return found


def options(verb: str) -> Iterator[tuple[str, str]]:
    """The names of each option, and its help with its default; ``--help`` is left out."""
    for parameter in command(verb).get_params(_context(verb)):
        record = parameter.get_help_record(_context(verb))
        if isinstance(parameter, click.Option) and record is not None and "--help" not in parameter.opts:
            yield record


def _context(verb: str) -> click.Context:
    return click.Context(
        command(verb), info_name=f"paramerge {verb}", max_content_width=200, terminal_width=200
    )


def _entry(verb: str) -> str:
    usage = command(verb).get_usage(_context(verb))
    rows = [f"| `{_cell(names)}` | {_cell(with_flags(text))} |" for names, text in options(verb)]
    head = ["| option | |", "|---|---|"]
    return "\n".join([f"## {verb}\n", *_help(verb), f"`{usage.removeprefix('Usage: ')}`\n", *head, *rows, ""])


def _help(verb: str) -> Iterator[str]:
    """The help's paragraphs: those that click is told not to wrap as code, where they are commands."""
    for paragraph in inspect.cleandoc(command(verb).help or "").split("\n\n"):
        bare = paragraph.startswith("\b")
        text = with_flags(paragraph.removeprefix("\b").strip("\n"))
        if bare and text.lstrip().startswith("paramerge "):
            yield f"```sh\n{inspect.cleandoc(text)}\n```\n"
        else:
            yield text + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    sys.stdout.write(render())
