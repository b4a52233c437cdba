"""Errors as the command line shows them: their parts a line each, or as JSON."""

from __future__ import annotations

import click

from paramerge.cli.call import print_json
from paramerge.cli.flags import with_flags
from paramerge.errors import ParamergeError, printable


def show_error(error: ParamergeError, *, as_json: bool) -> None:
    """Print an error: its parts a line each to stderr, or one JSON object to stdout."""
    if as_json:
        said = dict([("what", error.what), *error.lines()])
        parts = {"kind": type(error).__name__, **said, "exit_code": error.exit_code}
        print_json({"error": parts})
        return
    click.echo(click.style("error: ", fg="red", bold=True) + printable(with_flags(error.what)), err=True)
    for label, text in error.lines():
        click.echo(click.style(f"{label + ':':>10} ", dim=True) + printable(with_flags(text)), err=True)
