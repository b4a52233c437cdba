"""Names of files as the system counts them: in bytes, and of bytes that need not be valid UTF-8."""

from __future__ import annotations

import os


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
