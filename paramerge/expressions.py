"""Regular expressions that come from outside, or that many names are asked for: RE2 runs them.

Its time is linear in the names, whatever the expressions are, and it looks for any number of them at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import islice
from typing import Any

_MEMORY = 1 << 26
"""Bytes that RE2 may take for several expressions together."""

_MEMORY_OF_ONE = 1 << 20

_AT_ONCE = 4096
"""Names that are looked through at once, as lines of one text."""


@cache
def compiled(expression: str) -> Any:
    """``expression``, with the methods that :mod:`re` has; ValueError where RE2 does not take it."""
    import re2  # loaded where it is needed: it takes some milliseconds

    try:
        return re2.compile(expression, _options(_MEMORY_OF_ONE))  # type: ignore[no-untyped-call]
    except re2.error as error:
        reason = error.args[0] if error.args else error
        raise ValueError(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason) from None


def occurring(expressions: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """The ``expressions`` that occur in one of ``names``; ``^`` is the beginning of a name."""
    every = tuple(expressions)
    together, rest = _together(every), iter(names)
    found: set[str] = set()
    while len(found) < len(every) and (some := list(islice(rest, _AT_ONCE))):
        found.update(every[place] for place in together.Match("\n".join(some)) or ())
    return frozenset(found)


def first_occurring(expressions: Iterable[str], name: str) -> str | None:
    """The first of ``expressions`` that occurs in ``name``."""
    every = tuple(expressions)
    return min(((place, every[place]) for place in _together(every).Match(name) or ()), default=(0, None))[1]


@lru_cache(maxsize=16)
def _together(expressions: tuple[str, ...]) -> Any:
    import re2

    every: Any = re2.Set.SearchSet(_options(_MEMORY))  # type: ignore[no-untyped-call]
    for expression in expressions:
        every.Add(f"(?m:{expression})")
    every.Compile()
    return every


def _options(memory: int) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = memory
    return options
