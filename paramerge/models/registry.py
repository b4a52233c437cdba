"""The one list of architectures: those that come along, those that other packages add, and those of a caller.

A package adds its own under the entry point ``paramerge.architectures``: an :class:`ArchitectureRecord` or
several (``docs/extending.md``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any, TypeVar

from paramerge.errors import PluginError
from paramerge.models.architectures import BUILT_IN
from paramerge.models.names import COMPONENTS
from paramerge.models.record import ArchitectureRecord, Published
from paramerge.plugins import plugins

__all__ = ["GROUP", "family_of", "published", "record_of", "records", "refresh", "register", "unregister"]

GROUP = "paramerge.architectures"
"""The entry points of packages that add architectures."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_registered: dict[str, ArchitectureRecord] = {}


@cache
def records() -> tuple[ArchitectureRecord, ...]:
    """Every architecture, in the order in which they are tried: those that were added come first.

    Raises
    ------
    PluginError
        A package adds something that is no record, or one whose name is taken.
    """
    found = {record.name: record for record in BUILT_IN}
    added: dict[str, ArchitectureRecord] = {}
    for who, offered in [*plugins(GROUP), *((f"register({name!r})", r) for name, r in _registered.items())]:
        for record in _several(offered):
            _check(record, who, {**found, **added})
            added[record.name] = record
    return (*added.values(), *found.values())


def register(record: ArchitectureRecord) -> None:
    """Add an architecture for as long as the program runs.

    Raises
    ------
    PluginError
        It is no record, its name is taken, or a field of it cannot be.
    """
    _check(record, "register", {known.name: known for known in records()})
    _registered[record.name] = record
    refresh()


def unregister(name: str) -> None:
    """Take back :func:`register`; nothing happens where there is no such architecture of a caller."""
    _registered.pop(name, None)
    refresh()


_followers: list[Callable[[], None]] = []


_Cached = TypeVar("_Cached", bound="Callable[..., object]")


def followed(cached: _Cached) -> _Cached:
    """Decorate a cached function of the registry, which is to forget when an architecture is added."""
    _followers.append(cached.cache_clear)  # type: ignore[attr-defined]
    return cached


def refresh() -> None:
    """Ask anew what packages add: after one was installed, and whenever a caller adds one."""
    records.cache_clear()
    for forget in _followers:
        forget()


@followed
@lru_cache(maxsize=256)  # names come from files
def record_of(name: str | None) -> ArchitectureRecord:
    """The record of the architecture ``name``; one with the name alone where nothing is known of it.

    A variant that differs in what goes in is its family's: ``sdxl-16-channels`` is as ``sdxl``.
    """
    known = {record.name: record for record in records()}
    if name is None or name in known:
        return known[name] if name is not None else ArchitectureRecord("unknown")
    families = [record for record in known.values() if record.inputs and name.startswith(f"{record.name}-")]
    if families:
        return max(families, key=lambda record: len(record.name)).variant(name)
    return ArchitectureRecord(name)


def family_of(name: str) -> str:
    """The architecture whose layers ``name`` has: ``sd15`` of ``sd15-inpainting``.

    Both have the same layers, but for the shape of the first convolution.
    """
    return record_of(name).plain


def published() -> dict[str, Callable[..., Published]]:
    """By name what makes the layout of an architecture's published checkpoint, where that is known."""
    return {record.name: record.published for record in records() if record.published is not None}


def _several(offered: Any) -> Iterable[Any]:
    return offered if isinstance(offered, (tuple, list)) else (offered,)


def _check(record: Any, who: str, known: dict[str, ArchitectureRecord]) -> None:
    """Refuse what is no record of a new architecture."""
    if not isinstance(record, ArchitectureRecord):
        raise PluginError(
            "what is added as an architecture is none",
            where=who,
            expected="an ArchitectureRecord, or several",
            found=type(record).__name__,
        )
    where = f"{who}: architecture {record.name}"
    if record.name in known:
        raise PluginError("there is an architecture of this name already", where=where)
    if not _NAME.fullmatch(record.name):
        raise PluginError("this is no name of an architecture", where=where, expected="a-z, 0-9, - and _")
    if record.component not in COMPONENTS:
        raise PluginError(
            "an architecture is of a component that there is not",
            where=where,
            expected=", ".join(COMPONENTS),
            found=record.component,
        )
    if record.family is not None and record.family not in known:
        raise PluginError(
            "an architecture is of a family that there is not", where=where, found=record.family
        )
    given = (record.shown_by, record.unordered_rows, *(found.pattern for found in record.resembles))
    for pattern in (*record.patterns, *(text for text in given if text is not None)):
        try:
            re.compile(pattern)
        except re.error as error:
            raise PluginError(
                f"a pattern of this architecture is no regular expression ({error})",
                where=where,
                found=pattern,
            ) from error
