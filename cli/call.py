"""The call that is under way: its verb, its files and warnings, and the JSON that is printed of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from paramerge.cli.flags import flagged, with_flags
from paramerge.strict_json import dump
from paramerge.version import __version__

SCHEMA = 1
"""The number of the JSON's schema, which grows when a key changes its meaning; new keys do not count."""
KEY = "paramerge"
"""The key of all that every verb's JSON has."""


@dataclass
class Call:
    """One call of the command line.

    Attributes
    ----------
    inputs, places:
        The files and folders that the call names for reading, and for writing.
    """

    verb: str = ""
    as_json: bool = False
    inputs: list[str] = field(default_factory=list)
    places: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parts: list[dict[str, Any]] | None = None
    began: float = field(default_factory=time.monotonic)

    def about(self) -> dict[str, object]:
        """The part of the JSON that is the same for every verb, and for errors."""
        return {
            "schema": SCHEMA,
            "version": __version__,
            "verb": self.verb,
            "inputs": self.inputs,
            "outputs": sorted(self._outputs()),
            "warnings": self.warnings,
            "seconds": round(time.monotonic() - self.began, 3),
        }

    def _outputs(self) -> set[str]:
        """The outputs that are in their places: a folder that was named counts for all that is in it."""
        writer = sys.modules.get("paramerge.files.writer")  # not imported: nothing was written
        written = [] if writer is None else writer.written_outputs()
        folders = [place.resolve() for place in self.places if place.is_dir()]
        return {
            str(next((folder for folder in folders if path.is_relative_to(folder)), path)) for path in written
        }


_calls = [Call()]


def begin(verb: str, *, as_json: bool) -> Call:
    """Begin a call of ``verb``, which the functions of this module are about from then on."""
    if (writer := sys.modules.get("paramerge.files.writer")) is not None:
        writer.forget_outputs()
    _calls[:] = [Call(verb, as_json)]
    return _calls[0]


def current() -> Call:
    """The call that is under way."""
    return _calls[0]


def note_inputs(files: Iterable[str]) -> None:
    """Note files that a verb names in another way than by a parameter of its own."""
    current().inputs.extend(files)


@contextmanager
def collected() -> Iterator[list[dict[str, Any]]]:
    """Keep what is printed as JSON in the block, for a verb that does one thing several times."""
    parts: list[dict[str, Any]] = []
    before, current().parts = current().parts, parts
    try:
        yield parts
    finally:
        current().parts = before


def print_json(content: Mapping[str, Any], **dumped: Any) -> None:
    """Print the findings of a verb, with what every verb says of its call, and flags for arguments."""
    found = flagged(dict(content))
    if (parts := current().parts) is not None:
        parts.append(found)
    else:
        click.echo(dump({KEY: current().about(), **found}, **dumped))


def remember_warning(text: str) -> bool:
    """Keep a warning for the JSON; returns whether it is to be shown as well."""
    call = current()
    call.warnings.append(with_flags(text))
    return not call.as_json
