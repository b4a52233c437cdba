"""JSON from outside, read strictly and in bounded time; JSON to the outside, without ``NaN``.

Every JSON text that the project did not write itself a moment ago goes through :func:`parse` or one of the
functions on top of it: headers, configurations, indexes, metadata. The rules are those of serde_json, the
parser of the safetensors library, and one more: no object has a key twice.
"""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from paramerge.errors import FileFormatError, ParamergeError, shortened
from paramerge.regular_files import read_whole

MAX_DEPTH = 127
"""Objects and lists within each other that serde_json reads."""

MAX_BYTES = 16_000_000
"""Bytes of a configuration; the longest known have some 100 kB."""

MAX_VALUES = 6_000_000
"""Values in one text, counted by its commas; headers of the largest models have some 100,000."""

_Pairs = list[tuple[str, Any]]

_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_LARGEST = 1.797e308
"""The largest number of float64, to the fourth digit; serde_json refuses larger ones, whole or not."""


def unique(pairs: _Pairs) -> dict[str, Any]:
    """The object that ``pairs`` are.

    Raises
    ------
    ValueError
        Two have one key.
    """
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shortened(double)!r} is there twice")
    return entries


def parse(raw: bytes | str, make_object: Callable[[_Pairs], Any] = unique) -> Any:
    """The value of the JSON text ``raw``; ``make_object`` makes an object of its pairs.

    ``-0`` becomes a float, as in serde_json. How deep it is nested and how large its whole numbers are is
    bounded by Python's own limits: :func:`check_bounds` has serde_json's.

    Raises
    ------
    ValueError
        It is no JSON: not UTF-8, half of a surrogate pair, ``NaN`` or ``Infinity``, a float that is out of
        range, a key twice in one object, or simply malformed; or it has more than :data:`MAX_VALUES`.
    """
    text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    if text.count(",") > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    _refuse_half_pairs(text)
    decoder = json.JSONDecoder(
        object_pairs_hook=make_object,
        parse_constant=_no_constant,
        parse_float=_finite,
        parse_int=_integer if "-0" in text else int,
    )
    try:
        with no_collection():
            return decoder.decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


@contextmanager
def no_collection() -> Iterator[None]:
    """No search for cycles while millions of objects are made that have none: it takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_bounds(value: Any, limit: int = MAX_DEPTH) -> None:
    """Refuse a value that serde_json cannot hold, in one pass over ``value``.

    Raises
    ------
    ValueError
        Objects and lists are nested more than ``limit`` deep, or a whole number is beyond float64.
    """
    level: list[Collection[Any]] = [[value]]
    for _ in range(limit + 1):
        below: list[Collection[Any]] = []
        for values in level:
            if set(map(type, values)) <= {str}:  # metadata, of which there may be millions
                continue
            for inner in values:
                if isinstance(inner, dict):
                    below.append(inner.values())
                elif isinstance(inner, list | tuple):  # tuples come from a caller's ``make_object``
                    below.append(inner)
                elif isinstance(inner, int) and not -_LARGEST <= inner <= _LARGEST:
                    raise ValueError("a number is out of range")
        if not below:
            return
        level = below
    raise ValueError(_TOO_DEEP)


def object_from(
    raw: bytes | str,
    where: object,
    *,
    what: str = "this text",
    error: type[ParamergeError] = FileFormatError,
    limit: int = MAX_BYTES,
) -> dict[str, Any]:
    """The JSON object ``raw``, as ``what`` (a noun: "this configuration") and ``where`` it is for messages.

    Raises
    ------
    ParamergeError
        It is too long, no valid JSON or no object; of the class ``error``.
    """
    if len(raw) > limit:
        raise error(
            f"{what} is too long", where=where, expected=f"at most {limit} bytes", found=f"{len(raw)} bytes"
        )
    try:
        value = parse(raw)
        check_bounds(value)
    except ValueError as problem:
        raise error(f"{what} is not valid JSON", where=where, found=problem) from None
    if not isinstance(value, dict):
        raise error(
            f"{what} is not a JSON object", where=where, expected="{...}", found=_KINDS[type(value).__name__]
        )
    return value


def read_object(
    path: str | os.PathLike[str],
    *,
    what: str = "this file",
    error: type[ParamergeError] = FileFormatError,
    limit: int = MAX_BYTES,
) -> dict[str, Any]:
    """The JSON object in the file at ``path``; see :func:`object_from`.

    Raises
    ------
    ParamergeError
        The file is no regular file or not such an object, of the class ``error``; or it cannot be read.
    """
    raw = read_whole(path, what=what, error=error, limit=limit)
    return object_from(raw, path, what=what, error=error, limit=limit)


def dump(value: Any, *, indent: int | None = 2, default: Callable[[Any], Any] | None = None) -> str:
    """``value`` as JSON that every reader takes: numbers that are not finite are written as ``null``."""
    try:
        return json.dumps(value, indent=indent, default=default, allow_nan=False)
    except ValueError:
        finite = _without_non_finite(value)
        return json.dumps(finite, indent=indent, default=default, allow_nan=False)


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if abs(number) > _LARGEST:
        raise ValueError(f"the number {shortened(text)} is out of range")
    return number


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)


def _refuse_half_pairs(text: str) -> None:
    """Refuse a half of a surrogate pair; two halves that are one character are left to the decoder."""
    if "\\ud" in text or "\\uD" in text:
        escapes = text.replace("\\\\", "")  # a backslash that is escaped begins nothing
        if _HALF.search(_PAIR.sub("", escapes)):
            raise ValueError("a text has half of a surrogate pair")


_TOO_DEEP = f"objects and lists are nested more than {MAX_DEPTH} deep"
_KINDS = {"list": "a list", "str": "a text", "int": "a number", "float": "a number", "bool": "a truth value"}
_KINDS["NoneType"] = "null"
