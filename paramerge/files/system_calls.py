"""Calls on open files that not every system has, each with a way to do the same there.

Windows has no positioned reads and writes, no ``fchmod``, opens files as text unless told otherwise, and does
not rename a file that is open.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags of every file that is opened: bytes as they are, and none of it for child processes."""

RENAMES_OPEN_FILES = os.name == "posix"
"""Whether a file may be renamed, replaced or removed while it is open."""

_SEEK = threading.Lock()
"""Held while reading or writing, as both move the file's one position."""


if hasattr(os, "preadv"):

    def read_at(descriptor: int, view: memoryview, position: int) -> int:
        """Read into ``view`` from ``position`` on; returns the bytes read, 0 at the end of the file."""
        return os.preadv(descriptor, [view], position)

else:

    def read_at(descriptor: int, view: memoryview, position: int) -> int:
        """Read into ``view`` from ``position`` on; returns the bytes read, 0 at the end of the file."""
        with _SEEK:
            os.lseek(descriptor, position, os.SEEK_SET)
            data = os.read(descriptor, len(view))
        view[: len(data)] = data
        return len(data)


if hasattr(os, "pwrite"):

    def write_at(descriptor: int, data: memoryview, position: int) -> int:
        """Write ``data`` at ``position``; returns the bytes written."""
        return os.pwrite(descriptor, data, position)

else:

    def write_at(descriptor: int, data: memoryview, position: int) -> int:
        """Write ``data`` at ``position``; returns the bytes written."""
        with _SEEK:
            os.lseek(descriptor, position, os.SEEK_SET)
            return os.write(descriptor, data)


def set_mode(descriptor: int, mode: int) -> None:
    """Give an open file its permissions, where the system keeps them by file."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)


def sync_file(path: Path) -> None:
    """Make the content of a file that is closed durable.

    Raises
    ------
    OSError
        The system failed to.
    """
    if RENAMES_OPEN_FILES:
        descriptor = os.open(path, os.O_RDONLY | BINARY)
    else:
        try:
            descriptor = os.open(path, os.O_RDWR | BINARY)  # Windows syncs what may be written alone
        except PermissionError:
            return  # read-only, as it was copied: nothing is left to sync
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_folder(a: Path, b: Path) -> None:
    """Rename the folder ``a`` to ``b``, never over anything but an empty folder.

    Raises
    ------
    OSError
        There is something at ``b``.
    """
    if not RENAMES_OPEN_FILES:  # where a rename never takes the place of a folder
        with contextlib.suppress(FileNotFoundError):
            b.rmdir()
    a.rename(b)
