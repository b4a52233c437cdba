"""Work that writes on the way, stopped by Ctrl-C, SIGTERM or SIGHUP: what is kept, and how it goes on."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from paramerge.cli.verbs import WORDS
from paramerge.errors import StoppedError


@contextmanager
def resumable(ctx: click.Context, output: Path, place: Callable[[], str]) -> Iterator[None]:
    """Report at a stop the progress, the part that is kept, and the command that goes on.

    Parameters
    ----------
    place:
        Gives how far the work has come, in words that follow "stopped".

    Raises
    ------
    StoppedError
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        typed = shlex.join(["paramerge", ctx.info_name or "", *ctx.meta.get(WORDS, sys.argv[2:])])
        raise StoppedError.after(
            stop,
            f"stopped {place()}",
            where=output,
            found=_content_so_far(output),
            hint=f"to go on from here: {typed}",
        ) from stop


def _content_so_far(output: Path) -> str:
    """The content of the folder so far, in words; of a training that was under way, its last checkpoint."""
    pictures = sum(1 for _ in output.glob("**/pictures/**/*.png"))
    words = [f"{pictures} pictures kept"] if pictures else []
    checkpoints = sorted(output.glob("trained/**/checkpoints/step-*.safetensors"), key=_modified)
    if checkpoints:
        words.append(f"the last checkpoint is {checkpoints[-1]}")
    return ", ".join(words) or "nothing kept yet"


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
