"""Errors of commands outside ``paramerge`` itself, shown as its own command line shows them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from paramerge.errors import printable
from paramerge.system_faults import as_paramerge_error

__all__ = ["shown_errors"]


@contextlib.contextmanager
def shown_errors() -> Iterator[None]:
    """Print an error, the project's or the system's, its parts a line each, and exit with its code."""
    try:
        yield
    except (click.ClickException, click.Abort):
        raise  # click's own, of the call or of a stop
    except Exception as fault:
        error = as_paramerge_error(fault)
        lines = [f"error: {error.what}", *(f"{label + ':':>10} {text}" for label, text in error.lines())]
        click.echo("\n".join(printable(line) for line in lines), err=True)
        sys.exit(error.exit_code)
