"""Arguments of a wrong type, named at once instead of deep inside."""

from __future__ import annotations

import os
from pathlib import Path

from paramerge.errors import UsageError
from paramerge.wording import option


def as_path(value: object, argument: str = "path") -> Path:
    """``value`` as a path.

    Raises
    ------
    UsageError
        It is neither text nor a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise wrong_type(argument, "the path of a file or folder", value)
    return Path(value)


def wrong_type(argument: str, expected: str, found: object) -> UsageError:
    """The error for an argument that is of another type than those it may be of."""
    return UsageError(
        "an argument is of a type that is not taken",
        where=option(argument),
        expected=expected,
        found=type(found).__name__,
    )
