"""Endings of keys, found by their words: one look for all endings of all families.

An ending is the part of a key behind a layer's name: ``lora_up.weight``. Where PEFT puts an adapter's name it
says so: ``lora_A.<name>.weight`` is ``lora_A.weight`` and ``lora_A.default.weight``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

_NAME = "<name>"


class Found(NamedTuple, Generic[T]):
    """An ending that a key has: the stem, whether an adapter's name is in the ending, what goes with it."""

    stem: str
    named: bool
    value: T


class Endings(Generic[T]):
    """Values that go with endings of keys; the time of a look is linear in the key."""

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        self._forms: dict[str, list[tuple[tuple[str, ...], T]]] = {}
        self._longest = 0
        for ending, value in entries:
            for words in _forms(ending):
                self._forms.setdefault(words[0], []).append((words, value))
                self._longest = max(self._longest, len(words))

    def find(self, key: str) -> list[Found[T]]:
        """The endings of ``key``, the longest first, those of one length in their order."""
        parts = key.rsplit(".", self._longest)
        found = []
        for start in range(1, len(parts)):
            for words, value in self._forms.get(parts[start], ()):
                if len(words) == len(parts) - start and all(map(_fits, words, parts[start:])):
                    stem = ".".join(parts[:start])
                    found += [Found(stem, _NAME in words, value)] if stem else []
        return found


def without_name(ending: str) -> str:
    """The ending without the place of an adapter's name."""
    return ending.replace(f".{_NAME}", "")


def _forms(ending: str) -> Iterator[tuple[str, ...]]:
    """The ending in words, with each name and without it."""
    first, *words = ending.split(".")
    for kept in product(*((True, False) if word == _NAME else (True,) for word in words)):
        yield (first, *(word for word, there in zip(words, kept, strict=True) if there))


def _fits(word: str, part: str) -> bool:
    return word == part or (word == _NAME and is_word(part))


def is_word(part: str) -> bool:
    """Whether these are letters, digits and underscores, as in Python's ``\\w+``."""
    return part.replace("_", "a").isalnum()
