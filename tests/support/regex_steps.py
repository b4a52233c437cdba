"""What a regular expression costs in an engine that goes back, as Python's does: its steps, counted.

:func:`steps` runs a parsed expression as :mod:`re` does and counts characters looked at and choices tried;
:func:`trials` makes texts that nearly match out of an expression's own parts, repeated.
"""

from __future__ import annotations

import re
import re._constants as c  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import Any

sys.setrecursionlimit(50_000)  # a level for each character that is gone back over

_Rest = Callable[[int], bool]
_REPEATS = (c.MAX_REPEAT, c.MIN_REPEAT, c.POSSESSIVE_REPEAT)
_SINGLE = (c.LITERAL, c.NOT_LITERAL, c.ANY, c.IN)
_CATEGORIES = {
    c.CATEGORY_DIGIT: str.isdecimal,
    c.CATEGORY_SPACE: str.isspace,
    c.CATEGORY_WORD: lambda char: char.isalnum() or char == "_",
}
_NOT = {
    c.CATEGORY_NOT_DIGIT: c.CATEGORY_DIGIT,
    c.CATEGORY_NOT_SPACE: c.CATEGORY_SPACE,
    c.CATEGORY_NOT_WORD: c.CATEGORY_WORD,
}


def steps(pattern: re.Pattern[str], text: str, *, search: bool = False) -> int:
    """The steps of matching the whole of ``text``, or of a search for all matches in it."""
    nodes, engine, place = _parsed(pattern), _Engine(text, pattern.flags), 0
    if not search:
        engine.run(nodes, 0, 0, lambda end: end == len(text))
        return engine.count
    while place <= len(text):
        ends: list[int] = []
        engine.run(nodes, 0, place, lambda end, ends=ends: not ends.append(end))  # type: ignore[misc]
        place = max([place + 1, *ends])
    return engine.count


def trials(pattern: re.Pattern[str], length: int = 45, times: int = 1) -> Iterator[str]:
    """Texts of about ``length`` characters: a part of ``pattern``, or any two of them, over and over.

    With ``times`` everything is repeated so many times as often.
    """
    nodes = _parsed(pattern)
    pieces = {piece for piece in _pieces(nodes) if piece} | {"a", ".", "0"}
    short = sorted(pieces, key=lambda piece: (len(piece), piece))[:8]
    units = {*pieces, *(f"{one}{two}" for one, two in product(short, short) if one != two)}
    for before, after in (("", ""), ("", "!"), (next(iter(_samples(nodes)), ""), "!")):
        for unit in sorted(units):
            yield before + unit * (times * max(3, length // len(unit))) + after


@cache
def _parsed(pattern: re.Pattern[str]) -> list[Any]:
    return list(parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG))


class _Engine:
    def __init__(self, text: str, flags: int) -> None:
        self.text, self.flags, self.count = text, flags, 0

    def run(self, nodes: list[Any], index: int, place: int, rest: _Rest) -> bool:
        if index == len(nodes):
            return rest(place)
        self.count += 1
        op, value = nodes[index]

        def after(end: int) -> bool:
            return self.run(nodes, index + 1, end, rest)

        if op in _SINGLE:
            return place < len(self.text) and self._is(op, value, place) and after(place + 1)
        if op is c.SUBPATTERN:
            return self.run(list(value[3]), 0, place, after)
        if op is c.BRANCH:
            return any(self.run(list(each), 0, place, after) for each in value[1])
        if op is c.AT:
            return self._at(value, place) and after(place)
        if op in (c.ASSERT, c.ASSERT_NOT):
            return self.run(list(value[1]), 0, place, lambda _: True) == (op is c.ASSERT) and after(place)
        if op is c.ATOMIC_GROUP:
            return self._once(list(value), place, after)
        if op in _REPEATS:
            return self._repeat(op, value, place, after)
        raise NotImplementedError(op)

    def _once(self, nodes: list[Any], place: int, after: _Rest) -> bool:
        ends: list[int] = []
        return self.run(nodes, 0, place, lambda end: not ends.append(end)) and after(ends[0])  # type: ignore[func-returns-value]

    def _repeat(self, op: Any, value: Any, place: int, after: _Rest) -> bool:
        least, most, body = value[0], value[1], list(value[2])
        if len(body) == 1 and body[0][0] in _SINGLE:
            end = place
            while end - place < most and end < len(self.text) and self._is(*body[0], end):
                self.count += 1
                end += 1
            places = range(place + least, end + 1)
            for each in places if op is c.MIN_REPEAT else reversed(places):
                self.count += 1
                if after(each):
                    return True
                if op is c.POSSESSIVE_REPEAT:
                    return False
            return False
        return self._several(op, least, most, body, place, after)

    def _several(self, op: Any, least: int, most: int, body: list[Any], place: int, after: _Rest) -> bool:
        def once_more() -> bool:
            return most > 0 and self.run(
                body,
                0,
                place,
                lambda end: end > place and self._several(op, max(least - 1, 0), most - 1, body, end, after),
            )

        if least > 0:
            return once_more()
        return (after(place) or once_more()) if op is c.MIN_REPEAT else (once_more() or after(place))

    def _is(self, op: Any, value: Any, place: int) -> bool:
        char = self.text[place]
        if op is c.ANY:
            return char != "\n" or bool(self.flags & re.DOTALL)
        if op is c.IN:
            return self._in(value, char)
        same = value == ord(char) or (self.flags & re.IGNORECASE and chr(value).lower() == char.lower())
        return bool(same) == (op is c.LITERAL)

    def _in(self, items: Any, char: str) -> bool:
        negated = items[0][0] is c.NEGATE
        found = any(_has(op, value, char) for op, value in items if op is not c.NEGATE)
        return found != negated

    def _at(self, where: Any, place: int) -> bool:
        if where in (c.AT_BEGINNING, c.AT_BEGINNING_STRING):
            return place == 0
        if where in (c.AT_END, c.AT_END_STRING):
            return place == len(self.text)
        sides = [0 <= each < len(self.text) and _is_word(self.text[each]) for each in (place - 1, place)]
        return (sides[0] != sides[1]) == (where is c.AT_BOUNDARY)


def _is_word(char: str) -> bool:
    return bool(_CATEGORIES[c.CATEGORY_WORD](char))


def _has(op: Any, value: Any, char: str) -> bool:
    if op is c.LITERAL:
        return bool(value == ord(char))
    if op is c.RANGE:
        return bool(value[0] <= ord(char) <= value[1])
    negated = value in _NOT
    return bool(_CATEGORIES[_NOT.get(value, value)](char)) != negated


def _pieces(nodes: list[Any]) -> Iterator[str]:
    """A text of each part of an expression: its words, what repeats, its choices."""
    run = ""
    for op, value in nodes:
        if op is c.LITERAL:
            run += chr(value)
            continue
        yield run
        run = ""
        for inner in _inner(op, value):
            yield from _samples(inner)
            yield from _pieces(inner)
    yield run


def _inner(op: Any, value: Any) -> list[list[Any]]:
    if op is c.SUBPATTERN:
        return [list(value[3])]
    if op is c.BRANCH:
        return [list(each) for each in value[1]]
    if op in _REPEATS:
        return [list(value[2])]
    if op in (c.ASSERT, c.ASSERT_NOT):
        return [list(value[1])]
    return [list(value)] if op is c.ATOMIC_GROUP else []


def _samples(nodes: list[Any]) -> Iterator[str]:
    """One text that the parts match, each repeat once or as often as it must."""
    text = ""
    for op, value in nodes:
        if op is c.LITERAL:
            text += chr(value)
        elif op in (c.ANY, c.NOT_LITERAL):
            text += "~"
        elif op is c.IN:
            text += next((char for char in "a0._-A~" + _first(value) if _Engine("", 0)._in(value, char)), "")
        elif op in _REPEATS:
            text += "".join(_samples(list(value[2]))) * max(value[0], 1)
        elif op not in (c.ASSERT, c.ASSERT_NOT, c.AT):
            text += "".join(next(iter(_samples(inner)), "") for inner in _inner(op, value)[:1])
    yield text


def _first(items: Any) -> str:
    op, value = items[-1]
    return chr(value) if op is c.LITERAL else chr(value[0]) if op is c.RANGE else ""
