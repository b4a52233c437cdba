"""Names of files as the system counts them: in bytes, and of bytes that need not be valid UTF-8."""

from __future__ import annotations

import os
import re

_NOT_ON_WINDOWS = re.compile(r'[<>:"|?*\x00-\x1f]')
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}


def cut_name(name: str, room: int = 200) -> str:
    """The beginning of ``name`` that takes at most ``room`` bytes, of whole characters.

    File systems allow 255 bytes for a name; a character of Devanagari or Chinese takes three of them.
    """
    name = name[:room]
    while len(os.fsencode(name)) > room:
        name = name[:-1]
    return name


def readable_name(name: str) -> str:
    """``name`` as text that can be stored: bytes that are not UTF-8 become ``\\\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def fault_on_windows(name: str) -> str | None:
    """The reason why Windows makes no file called ``name``, or another thing than a file; None where it does.

    ``a:b`` is a hidden stream of the file ``a`` there, ``nul.txt`` the null device, and ``a.`` is ``a``.
    """
    if found := _NOT_ON_WINDOWS.search(name):
        return f"{found[0]!r} has a meaning of its own there"
    if name.partition(".")[0].rstrip().upper() in _DEVICES:
        return "it is the name of a device"
    return "it ends with a dot or a space" if name.endswith((".", " ")) and set(name) != {"."} else None
