"""The dialects that there are: those of this package, then those that other packages add.

A package adds one by an entry point of the group ``paramerge.dialects`` that names its :class:`Dialect`; a
program by :func:`register`.
"""

from __future__ import annotations

from functools import cache, lru_cache

from paramerge.errors import PluginError, UsageError
from paramerge.formats.cloneofsimo import CLONEOFSIMO
from paramerge.formats.dialect import Dialect, Place
from paramerge.formats.diffusers import DIFFUSERS, DIFFUSERS_OLD
from paramerge.formats.kohya import KOHYA, KOHYA_SGM
from paramerge.formats.native import PARA
from paramerge.formats.peft import DEFT, PEFT
from paramerge.plugins import plugins

__all__ = ["dialect_of", "dialects", "named_dialect", "place_of", "register", "unregister", "writable"]

_GROUP = "paramerge.dialects"
_BUILT_IN = (KOHYA, KOHYA_SGM, DIFFUSERS, PEFT, PARA, DEFT, DIFFUSERS_OLD, CLONEOFSIMO)
_added: list[Dialect] = []


def dialects() -> tuple[Dialect, ...]:
    """All dialects.

    Raises
    ------
    PluginError
        What a package adds is no dialect, or has the key of another.
    """
    return (*_BUILT_IN, *_offered(), *_added)


def register(dialect: Dialect) -> None:
    """Add a dialect to this process.

    Raises
    ------
    UsageError
        There is one with its key.
    """
    if any(known.key == dialect.key for known in dialects()):
        raise UsageError("there is a dialect of this name already", where=dialect.key, expected="a new key")
    _added.append(dialect)
    _forget()


def unregister(dialect: Dialect) -> None:
    """Take back what :func:`register` added."""
    _added.remove(dialect)
    _forget()


def named_dialect(key: str) -> Dialect:
    """The dialect of this key; UsageError where there is none."""
    found = next((dialect for dialect in dialects() if dialect.key == key), None)
    if found is None:
        raise UsageError(
            "no such dialect", expected=", ".join(dialect.key for dialect in dialects()), found=key
        )
    return found


def writable() -> dict[str, Dialect]:
    """The dialects that ``convert`` writes, by their keys."""
    return {dialect.key: dialect for dialect in dialects() if dialect.holds}


def dialect_of(key: str) -> Dialect:
    """The dialect that a key, or its stem, is spelled in."""
    return next((dialect for dialect in _reading() if dialect.claims(key)), DIFFUSERS)


@lru_cache(maxsize=1 << 14)
def place_of(stem: str) -> Place | None:
    """What the stem of a key, before its ending, names; None for what can be no module's path."""
    return dialect_of(stem).place(stem)


@cache
def _reading() -> tuple[Dialect, ...]:
    """The dialects in the order in which they are asked for a key: diffusers', which claims all, is last."""
    return tuple(dialect for dialect in dialects() if dialect is not DIFFUSERS)


@cache
def _offered() -> tuple[Dialect, ...]:
    found: list[Dialect] = []
    for offer, dialect in plugins(_GROUP):
        if not isinstance(dialect, Dialect):
            raise PluginError(
                "a package adds something to paramerge's dialects that is none",
                where=offer,
                expected="a paramerge.formats.dialect.Dialect",
                found=type(dialect).__name__,
            )
        if any(known.key == dialect.key for known in (*_BUILT_IN, *found)):
            raise PluginError(
                "a package adds a dialect that there is already", where=offer, found=dialect.key
            )
        found.append(dialect)
    return tuple(found)


def _forget() -> None:
    _reading.cache_clear()
    place_of.cache_clear()
