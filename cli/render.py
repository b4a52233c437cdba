"""The printing of every verb: two consoles, notes and warnings, a progress bar, sizes for people."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from paramerge.cli.call import remember_warning
from paramerge.cli.flags import with_flags
from paramerge.errors import printable, shortened

_REFRESH_SECONDS = 0.1

_WHOLE = 1_000_000
"""Columns of a file or another program, which nobody looks at: no line is broken."""


class Lines(Console):
    """A console that prints whole lines, without spaces at their ends, where it is no terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)
        self._here = threading.local()

    @contextmanager
    def captured(self) -> Iterator[StringIO]:
        """All that this thread prints meanwhile, as a file has it."""
        self._here.text = text = StringIO()
        try:
            yield text
        finally:
            self._here.text = None

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print ``objects`` as rich does."""
        captured: StringIO | None = getattr(self._here, "text", None)
        if captured is None and self.is_terminal:
            super().print(*objects, **settings)
            return
        text = StringIO()
        Console(file=text, width=_WHOLE, highlight=False, soft_wrap=True).print(*objects, **settings)
        (captured or self.file).write("\n".join(line.rstrip(" ") for line in text.getvalue().split("\n")))


out = Lines()
err = Lines(stderr=True)


def note(text: str, *, quiet: bool = False) -> None:
    """A line about the work, to stderr."""
    if not quiet:
        err.print(f"[dim]{shown(text)}[/dim]")


def note_ending(given: Path, written: Path, *, quiet: bool = False) -> None:
    """Say that an ending was added to the name of the output."""
    if given != written:
        note(f"{given.name} has no ending: written to {written}", quiet=quiet)


def warn(text: str) -> None:
    """A warning, to stderr; where JSON is printed it is part of that."""
    if remember_warning(text):
        err.print(f"[yellow]warning:[/yellow] {shown(text)}")


class Progress:
    """A progress bar on stderr; nothing at all where stderr is no terminal."""

    def __init__(self, title: str, *, quiet: bool, unit: str) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._title = title
        self._next = 0.0
        if not quiet and err.is_terminal:
            amount = (
                DownloadColumn() if unit == "bytes" else TextColumn("{task.completed}/{task.total} " + unit)
            )
            columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=err, transient=True)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show ``done`` of ``total``."""
        if self._bar is None or (time.monotonic() < self._next and done < total):
            return
        self._next = time.monotonic() + _REFRESH_SECONDS
        if self._task is None:
            self._task = self._bar.add_task(self._title, total=total)
        self._bar.update(self._task, completed=done, total=total)


def shown(text: object, limit: int = 5_000) -> str:
    """Text from outside, safe to print: neither rich's markup nor a terminal's control sequences act.

    Of a text longer than ``limit`` the beginning and the end are shown: a name in a file may have 100 MB.
    """
    return escape(printable(with_flags(shortened(text if isinstance(text, str) else str(text), limit))))


def gigabytes(count: int) -> str:
    """Bytes for people: ``6.94 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
