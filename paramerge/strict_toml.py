"""TOML from outside, read in bounded time."""

from __future__ import annotations

import os
import tomllib
from typing import Any

from paramerge.errors import FileFormatError, ParamergeError
from paramerge.regular_files import SMALL_BYTES, read_text

_MAX_DOTS = 10_000
"""Full stops in one text: Python's parser takes the square of a dotted key's parts (8,000: a second)."""


def read_toml(
    path: str | os.PathLike[str],
    *,
    what: str = "this file",
    error: type[ParamergeError] = FileFormatError,
    limit: int = SMALL_BYTES,
) -> dict[str, Any]:
    """The tables in the file at ``path``, as ``what`` (a noun: "this configuration") it is for messages.

    Raises
    ------
    ParamergeError
        It is no regular file, too long, or no TOML; of the class ``error``.
    FileFormatError
        It is missing, or cannot be read.
    """
    text = read_text(path, what=what, error=error, limit=limit)
    if text.count(".") > _MAX_DOTS:
        raise error(f"{what} has too many full stops", where=path, expected=f"at most {_MAX_DOTS}")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise error(f"{what} is nested too deeply", where=path) from None
    except ValueError as fault:
        raise error(f"{what} is not valid TOML", where=path, found=fault) from None
