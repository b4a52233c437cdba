"""Names of arguments in texts: the library says ``allow_unmatched``, the command line ``--allow-unmatched``.

A text is written once, with :func:`option` or :func:`call` where it names an argument or a call. As a
:class:`Worded` it reads as the library says it; the command line shows it with flags (``cli/flags.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable

_BEGIN, _BETWEEN, _END = "\ue000", "\ue001", "\ue002"
"""Characters for private use: no text of ours has them, and in a file's name they do no harm."""

_MARK = re.compile(f"{_BEGIN}([^{_END}{_BEGIN}]*){_END}")
_BARE = re.compile(r"[A-Z]+|[\d./]+")
"""Values that are no text in Python: numbers, and placeholders in capitals."""

Mark = Callable[[str, list[tuple[str, str]]], str]
"""The text for a mark, from the verb it calls (empty for an argument alone) and names with their values."""


def option(name: str, value: object = "") -> str:
    """An argument, perhaps with a value: ``dtype="bf16"``, or ``--dtype bf16`` on the command line."""
    return _mark("", {name: str(value)})


def call(verb: str, **arguments: object) -> str:
    """A call: ``paramerge.extract(tuned="BAKED")``, or ``paramerge extract --from BAKED``."""
    return _mark(verb, {name: str(value) for name, value in arguments.items()})


class Worded(str):
    """A text as the library says it; :attr:`raw` has the marks still."""

    raw: str

    def __new__(cls, raw: str) -> Worded:
        """The text ``raw``, in which arguments are marked."""
        text = super().__new__(cls, reworded(raw, _in_python))
        text.raw = raw
        return text


def reworded(text: str, shown: Mark) -> str:
    """``text`` (of a :class:`Worded`, its raw text) with each mark as ``shown`` gives it."""
    raw = getattr(text, "raw", text)
    if _BEGIN not in raw:
        return str(raw)

    def one(found: re.Match[str]) -> str:
        verb, *arguments = found[1].split(_BETWEEN)
        pairs = [(name, value) for name, _, value in (text.partition("=") for text in arguments)]
        return shown(verb, pairs)

    return _MARK.sub(one, raw).translate(dict.fromkeys(map(ord, (_BEGIN, _BETWEEN, _END))))


def _mark(verb: str, arguments: dict[str, str]) -> str:
    return _BEGIN + _BETWEEN.join([verb, *(f"{name}={value}" for name, value in arguments.items())]) + _END


def _in_python(verb: str, arguments: list[tuple[str, str]]) -> str:
    shown = ", ".join(_argument(name, value) for name, value in arguments)
    return f"paramerge.{verb}({shown})" if verb else shown


def _argument(name: str, value: str) -> str:
    """An argument, or the class of the adapter that a flag of this name gives (``FILE@STRENGTH:BLOCKS``)."""
    if name in ("para", "lora", "adapter"):
        inner = ", ".join(_quoted(part) for part in re.split("[@:]", value) if part)
        return f"paramerge.{name.capitalize()}" + (f"({inner})" if inner else "")
    return name if not value else f"{name}={_quoted(value)}"


def _quoted(value: str) -> str:
    return value if _BARE.fullmatch(value) else f'"{value}"'
