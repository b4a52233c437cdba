"""Regular files of people: opened without waiting, small ones read whole within a limit.

A name may be that of a pipe, a terminal, a device or a socket, or of a file of a terabyte. Whatever is read
whole and is not of safetensors is read by :func:`read_whole`, or by what is built on it: :func:`read_text`,
:func:`~paramerge.strict_json.read_object` and :func:`~paramerge.strict_toml.read_toml`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from paramerge.errors import FileFormatError, ParamergeError
from paramerge.system_faults import reading

SMALL_BYTES = 1 << 20
"""Bytes of a text that a person wrote: a configuration, a caption, a list of classes."""

_NAMES = ("O_RDONLY", "O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY")
OPEN_FLAGS = sum(getattr(os, name, 0) for name in _NAMES)
"""Flags of ``os.open`` with which no pipe is waited for, and no terminal becomes the program's own."""


def open_regular(
    path: Path,
    *,
    what: str = "this",
    error: type[ParamergeError] = FileFormatError,
    opener: Callable[[Path, int], int] = os.open,
) -> tuple[int, os.stat_result]:
    """A descriptor of the file at ``path``, to be closed by the caller, and its status.

    Parameters
    ----------
    what:
        The file, as a noun for messages: "this configuration".
    error:
        The class of the error for what is there and is no regular file.
    opener:
        Called with the path and :data:`OPEN_FLAGS`; gives the descriptor.

    Raises
    ------
    ParamergeError
        It is a folder, a pipe, a device or a socket.
    FileFormatError
        It is missing, or may not be read.
    """
    try:
        with reading(path):
            descriptor = opener(path, OPEN_FLAGS)
    except FileFormatError as fault:
        cause = fault.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENXIO, errno.ENODEV):  # a socket
            raise error(f"{what} is not a regular file", where=path) from None
        raise
    try:
        with reading(path):
            status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{what} is a folder, not a file", where=path)
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{what} is not a regular file", where=path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def is_there(path: Path) -> bool:
    """Whether anything has this name: a file, or a link to nothing and a pipe that must not be passed over.

    Raises
    ------
    UnreadableError
        The system does not say.
    """
    with reading(path):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def read_whole(
    path: str | os.PathLike[str],
    *,
    what: str = "this file",
    error: type[ParamergeError] = FileFormatError,
    limit: int = SMALL_BYTES,
) -> bytes:
    """The bytes of the file at ``path``, of which there are at most ``limit``.

    Raises
    ------
    ParamergeError
        It is no regular file or longer, of the class ``error``.
    FileFormatError
        It is missing, or cannot be read.
    """
    path = Path(path)
    descriptor, status = open_regular(path, what=what, error=error)
    with reading(path), os.fdopen(descriptor, "rb") as stream:
        # in /proc the size in a file's status is 0, whatever it holds
        raw = b"" if status.st_size > limit else stream.read(limit + 1)
    if max(status.st_size, len(raw)) > limit:
        raise error(f"{what} is too long", where=path, expected=f"at most {limit} bytes", found="more")
    return raw


def read_text(
    path: str | os.PathLike[str],
    *,
    what: str = "this file",
    error: type[ParamergeError] = FileFormatError,
    limit: int = SMALL_BYTES,
) -> str:
    """The UTF-8 text in the file at ``path``, without the mark that some editors begin with.

    Ends of lines are one ``\\n`` each.

    Raises
    ------
    ParamergeError
        It is no regular file, longer than ``limit``, or no such text; of the class ``error``.
    FileFormatError
        It is missing, or cannot be read.
    """
    raw = read_whole(path, what=what, error=error, limit=limit)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        found = f"byte {fault.object[fault.start]:#04x} at {fault.start}"
        raise error(f"{what} is no UTF-8 text", where=path, found=found) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
