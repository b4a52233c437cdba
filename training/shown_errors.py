"""How commands outside of ``paramerge`` itself show the project's errors: as its own command line does."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from paramerge.errors import ParamergeError, printable

__all__ = ["shown_errors"]


@contextlib.contextmanager
def shown_errors() -> Iterator[None]:
    """Print an error of the project, its parts a line each, and exit with its code."""
    try:
        yield
    except ParamergeError as error:
        lines = [f"error: {error.what}", *(f"{label + ':':>10} {text}" for label, text in error.lines())]
        click.echo("\n".join(printable(line) for line in lines), err=True)
        sys.exit(error.exit_code)
