"""The dialects that there are: those of this package, then those that other packages add.

A package adds one by an entry point of the group ``paramerge.dialects`` that names its :class:`Dialect`; a
program by :func:`register`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache

from paramerge.errors import PluginError, UsageError
from paramerge.formats.cloneofsimo import CLONEOFSIMO
from paramerge.formats.dialect import Dialect, Place
from paramerge.formats.diffusers import DIFFUSERS, DIFFUSERS_OLD
from paramerge.formats.kohya import KOHYA, KOHYA_SGM
from paramerge.formats.native import PARA
from paramerge.formats.peft import DEFT, PEFT
from paramerge.plugins import plugins

__all__ = [
    "ENTRY_POINTS",
    "boundaries",
    "dialect_of",
    "dialects",
    "forget",
    "named_dialect",
    "place_of",
    "register",
    "unregister",
    "writable",
]

ENTRY_POINTS = "paramerge.dialects"
_BUILT_IN = (KOHYA, KOHYA_SGM, DIFFUSERS, PEFT, PARA, DEFT, DIFFUSERS_OLD, CLONEOFSIMO)
_registered: list[Dialect] = []


def dialects() -> tuple[Dialect, ...]:
    """All dialects.

    Raises
    ------
    PluginError
        What a package adds is no dialect, or has the key of another.
    """
    return (*_installed(), *_registered)


def register(added: Dialect) -> None:
    """Add a dialect for this process, as an entry point does for every one.

    Raises
    ------
    PluginError
        It is no dialect, or its key is another's.
    """
    _check(added, "register()", dialects())
    _registered.append(added)
    _forget()


def unregister(key: str) -> None:
    """Take a dialect away that was registered."""
    _registered[:] = [each for each in _registered if each.key != key]
    _forget()


def named_dialect(key: str) -> Dialect:
    """The dialect of this key, or with this alias; UsageError where there is none."""
    found = next((dialect for dialect in dialects() if key in (dialect.key, *dialect.aliases)), None)
    if found is None:
        raise UsageError(
            "no such dialect", expected=", ".join(dialect.key for dialect in dialects()), found=key
        )
    return found


def writable() -> dict[str, Dialect]:
    """The dialects that ``convert`` writes, by their keys."""
    return {dialect.key: dialect for dialect in dialects() if dialect.parts}


def dialect_of(key: str) -> Dialect:
    """The dialect that a key, or its stem, is spelled in."""
    return next((dialect for dialect in _reading() if dialect.claims(key)), DIFFUSERS)


@lru_cache(maxsize=1 << 14)
def place_of(stem: str) -> Place | None:
    """What the stem of a key, before its ending, names; None for what can be no module's path."""
    return dialect_of(stem).place(stem)


@cache
def boundaries() -> re.Pattern[str]:
    """What may stand between a layer's name and the rest of a key."""
    return re.compile("|".join(sorted({re.escape(dialect.separator) for dialect in dialects()})))


@cache
def _reading() -> tuple[Dialect, ...]:
    """The dialects in the order in which they are asked for a key: diffusers', which claims all, is last."""
    return tuple(dialect for dialect in dialects() if dialect is not DIFFUSERS)


@cache
def _installed() -> tuple[Dialect, ...]:
    found: tuple[Dialect, ...] = _BUILT_IN
    for source, offered in plugins(ENTRY_POINTS):
        _check(offered, source, found)
        found = (*found, offered)
    return found


def _check(added: object, source: str, known: Iterable[Dialect]) -> None:
    if not isinstance(added, Dialect):
        raise PluginError(
            "what is offered as a dialect of adapters is none",
            where=source,
            expected="a paramerge.formats.dialect.Dialect",
            found=type(added).__name__,
        )
    if not re.fullmatch("[a-z][a-z0-9-]*", added.key):
        raise PluginError(
            "a dialect's key is a word of small letters, digits and dashes",
            where=source,
            found=repr(added.key),
        )
    if any(added.key in (other.key, *other.aliases) for other in known):
        raise PluginError(
            f"there is a dialect {added.key} already", where=source, expected="a key that no other has"
        )


def forget() -> None:
    """Ask installed packages again, for a process in which they change."""
    _installed.cache_clear()
    _forget()


def _forget() -> None:
    boundaries.cache_clear()
    _reading.cache_clear()
    place_of.cache_clear()
