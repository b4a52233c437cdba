"""Files that are not there: the error, with the names beside the place that are like the one given."""

from __future__ import annotations

import difflib
import errno
import os
from pathlib import Path

from paramerge.errors import MissingFileError
from paramerge.shipped import ADAPTERS, MODEL_NAME

_SHOWN = 3
_ENDING = ".safetensors"


def missing_file(
    path: os.PathLike[str] | str,
    what: str = "no such file",
    *,
    kind: type[MissingFileError] = MissingFileError,
    expected: object = None,
) -> MissingFileError:
    """The error for ``path``, whose hint names files that it may have meant."""
    error = kind(what, where=path, expected=expected, hint=_hint(Path(path)))
    error.errno, error.filename = errno.ENOENT, os.fspath(path)
    return error


def _hint(path: Path) -> str | None:
    if found := [str(path.with_name(name)) for name in _alike(path.name, _beside(path))]:
        return f"beside it: {', '.join(found)}"
    if path.parent == Path() and (found := _alike(path.name, [MODEL_NAME, *ADAPTERS])):
        return f"of the names that ship: {', '.join(found)}"
    return None


def _beside(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):
        return []


def _alike(name: str, others: list[str]) -> list[str]:
    """The names that differ from ``name`` by little, the nearest first, endings aside."""
    bare: dict[str, list[str]] = {}
    for other in others:
        bare.setdefault(other.removesuffix(_ENDING).lower(), []).append(other)
    near = difflib.get_close_matches(name.removesuffix(_ENDING).lower(), bare, _SHOWN, 0.75)
    return [other for each in near for other in bare[each]][:_SHOWN]
