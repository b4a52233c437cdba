"""A list for each thing that comes in kinds: those that come along, and those of packages and callers.

The families of adapters, the dialects of their files and the architectures of models are such lists, each in
the ``registry.py`` of its room.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from paramerge.errors import PluginError, UsageError
from paramerge.plugins import Package, plugins

Record = TypeVar("Record")
_Cached = TypeVar("_Cached", bound="Callable[..., object]")

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_followers: list[Callable[[], None]] = []


def followed(cached: _Cached) -> _Cached:
    """Decorate a cached function of any registry: it forgets when one of them changes."""
    _followers.append(cached.cache_clear)  # type: ignore[attr-defined]
    return cached


def _no_more(added: Any, where: str, known: Sequence[Any]) -> None:
    """Refuse nothing else of an entry."""


class Registry(Generic[Record]):
    """The list of one kind of thing, each entry by its name.

    Parameters
    ----------
    record:
        The class of the entries.
    word:
        The word for one, for errors: ``family``.
    group:
        The entry points of packages that add entries: each names one, or a tuple of several.
    built_in:
        Those that come along, in the order in which they are listed.
    names:
        The names of an entry, its own first; no other entry may have one of them.
    check:
        The function that refuses an entry beside the known ones, given the entry, who adds it, and these.
    added_first:
        Whether those that were added are listed before those that come along.
    """

    def __init__(
        self,
        record: type[Record],
        word: str,
        group: str,
        built_in: Sequence[Record],
        *,
        names: Callable[[Record], Sequence[str]],
        check: Callable[[Record, str, Sequence[Record]], None] = _no_more,
        added_first: bool = False,
    ) -> None:
        self.group = group
        self.built_in = tuple(built_in)
        self._record, self._word = record, word
        self._names, self._check, self._added_first = names, check, added_first
        self._registered: list[Record] = []
        self._all: tuple[Record, ...] | None = None
        self._by_name: Mapping[str, Record] = {}
        self._packages: Mapping[str, Package] = {}

    def all(self) -> tuple[Record, ...]:
        """Every entry, in order.

        Raises
        ------
        PluginError
            A package cannot be loaded, or offers what is no entry, or one that cannot be beside the others.
        """
        if self._all is None:
            known = self.built_in
            packages: dict[str, Package] = {}
            offers = [*plugins(self.group), *(("register()", added, None) for added in self._registered)]
            for source, offered, package in offers:
                for added in offered if isinstance(offered, (tuple, list)) else (offered,):
                    self.check(added, source, known)
                    known = (*known, added)
                    if package is not None:
                        packages |= dict.fromkeys(self._names(added), package)
            added_ones = known[len(self.built_in) :]
            self._by_name = {name: each for each in known for name in self._names(each)}
            self._packages = packages
            self._all = (*added_ones, *self.built_in) if self._added_first else known
        return self._all

    def get(self, name: str) -> Record | None:
        """The entry that has this name; None where there is none."""
        self.all()
        return self._by_name.get(name)

    def package_of(self, name: str) -> Package | None:
        """The installed package that added the entry of this name; None for what comes along."""
        self.all()
        return self._packages.get(name)

    def named(self, name: str) -> Record:
        """The entry that has this name.

        Raises
        ------
        UsageError
            There is none.
        """
        found = self.get(name)
        if found is None:
            raise UsageError(
                f"no such {self._word}",
                expected=", ".join(self._names(each)[0] for each in self.all()),
                found=name,
            )
        return found

    def register(self, added: Record) -> None:
        """Add an entry for this process, as an entry point does for every one.

        Raises
        ------
        PluginError
            It is no entry, or cannot be beside the others.
        """
        self.check(added, "register()", self.all())
        self._registered.append(added)
        self.refresh()

    def unregister(self, name: str) -> None:
        """Take back :meth:`register`; nothing happens where no entry of this name was registered."""
        self._registered[:] = [each for each in self._registered if self._names(each)[0] != name]
        self.refresh()

    @contextmanager
    def added(self, *records: Record) -> Iterator[None]:
        """With these entries beside the others."""
        before = self._registered[:]
        try:
            for record in records:
                self.register(record)
            yield
        finally:
            self._registered[:] = before
            self.refresh()

    def refresh(self) -> None:
        """Ask installed packages again, for a process in which they change."""
        self._all = None
        for forget in _followers:
            forget()

    def check(self, added: Any, where: str, known: Sequence[Record]) -> None:
        """Refuse an object that is no entry, or cannot be beside those ``known``; ``where`` says who adds it.

        Raises
        ------
        PluginError
        """
        if not isinstance(added, self._record):
            raise PluginError(
                f"this is no {self._word}",
                where=where,
                expected=f"a {self._record.__module__}.{self._record.__qualname__}",
                found=type(added).__name__,
            )
        name = self._names(added)[0]
        if not _NAME.fullmatch(name):
            raise PluginError(
                f"the name of {_with_article(self._word)} is small letters and digits, with - and _ between",
                where=where,
                found=repr(name),
            )
        taken = {other: self._names(each)[0] for each in known for other in self._names(each)}
        for other in self._names(added):
            if other in taken:
                raise PluginError(
                    f"there is {_with_article(self._word)} {other} already",
                    where=where,
                    expected="a name that no other has",
                    found=f"{other}, which is {taken[other]}" if other != taken[other] else None,
                )
        self._check(added, where, known)


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
