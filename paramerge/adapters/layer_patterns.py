"""Regular expressions from files, matched in time linear in the layer's name.

PEFT lets a configuration name layers by regular expressions. Python's own engine takes exponential time for
some of them, so they are matched by RE2, which has no lookarounds and no backreferences and takes ``\\w``,
``\\d`` and ``\\s`` for ASCII. Plain names, which nearly all are, need no engine at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

from paramerge.errors import AdapterError, shortened
from paramerge.expressions import compiled

_MAX_PATTERNS = 10_000
_MAX_EXPRESSIONS = 100

_WHOLE, _END = "(?:{})$", r"(.*\.)?({})$"
_PLAIN = re.compile(r"[\w.-]*", re.ASCII)
_Matcher = Callable[[str], bool]


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """The first of ``patterns`` that names the layer ``path``, as PEFT has it: for the end of the path.

    Text encoders are wrapped with and without ``text_model.`` in front, so either spelling may be meant.
    """
    spellings = {path, path.removeprefix("text_model.")}
    return next((key for key in patterns if any(map(_end_matcher(key), spellings))), None)


def whole_match(pattern: str, path: str) -> bool:
    """Whether ``pattern`` matches the whole of ``path``."""
    if _PLAIN.fullmatch(pattern):
        return len(path) == len(pattern) and _same(pattern, path)
    return _expression(_WHOLE.format(pattern))(path)


def check_patterns(option: str, patterns: list[str], where: str, *, names: bool = False) -> None:
    """Refuse patterns that cannot be matched; ``names`` are taken as plain names.

    Raises
    ------
    AdapterError
        One is no regular expression or has what RE2 has not, or there are too many.
    """
    expressions = [] if names else [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]
    if len(patterns) > _MAX_PATTERNS or len(expressions) > _MAX_EXPRESSIONS:
        raise AdapterError(
            "an option of this configuration has more entries than a model has layers",
            where=where,
            expected=f"{option}: at most {_MAX_PATTERNS}, {_MAX_EXPRESSIONS} of them regular expressions",
            found=f"{len(patterns)}, {len(expressions)} of them regular expressions",
        )
    for pattern in expressions:
        try:
            for form in ("{}", _WHOLE, _END):
                _expression(form.format(pattern))
                re.compile(form.format(pattern))  # a pattern that PEFT itself refuses means nothing
        except (ValueError, re.error, OverflowError, RecursionError) as error:
            raise AdapterError(
                "an option of this configuration has an impossible value",
                where=where,
                expected=f"{option}: names of layers, or regular expressions as RE2 knows them "
                "(no lookarounds, no backreferences)",
                found=f"{option}: {shortened(pattern)} ({shortened(str(error))})",
                hint="write the layers' names out",
            ) from None


@cache
def _end_matcher(key: str) -> _Matcher:
    if not _PLAIN.fullmatch(key):
        return _expression(_END.format(key))

    def ends(path: str) -> bool:
        start = len(path) - len(key)
        return start >= 0 and (start == 0 or path[start - 1] == ".") and _same(key, path[start:])

    return ends


def _same(key: str, text: str) -> bool:
    """Whether ``text``, as long as ``key``, is ``key``, in which a dot is any character."""
    return key == text or all(a in (b, ".") for a, b in zip(key, text, strict=True))


@cache
def _expression(expression: str) -> _Matcher:
    """Whether a text matches ``expression`` from its beginning on; ValueError where it cannot be compiled."""
    pattern = compiled(expression)
    return lambda text: pattern.match(text) is not None
