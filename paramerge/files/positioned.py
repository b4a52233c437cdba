"""Writing bytes at known places of one file, from several threads, as fast as the disk takes them.

Where the file system has direct writes (``O_DIRECT``), the aligned inside of each piece goes past the page
cache, which is two to three times faster for files of many gigabytes; its ragged ends, and everything
elsewhere, go through the cache in small chunks. The bytes are the same either way.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

from paramerge.files.system_calls import write_at

ALIGNMENT = 4096
"""Memory address, file position and length of a direct write are multiples of this."""

_CHUNK = 1 << 19
"""Bytes of one buffered write: larger ones make Linux write back in bursts and wait."""


def aligned_buffer(size: int) -> mmap.mmap:
    """Zeroed memory of at least ``size`` bytes that begins at a page."""
    return mmap.mmap(-1, max(size, ALIGNMENT))


class PositionedWriter:
    """Writes to the open file ``descriptor``, whose final length is ``size`` bytes.

    The space is reserved at once, so that a full disk shows before any work is done. Safe to use from
    several threads for pieces that do not overlap.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._buffered = descriptor
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
        self._direct = _open_direct(descriptor)

    @property
    def is_direct(self) -> bool:
        """Whether direct writes are in use."""
        return self._direct is not None

    def close(self) -> None:
        """Close what this object opened itself; the caller's descriptor stays open."""
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None

    def write(self, data: memoryview, position: int) -> None:
        """Write ``data`` at ``position``.

        It is direct where ``data`` starts at a memory address congruent to ``position`` modulo
        :data:`ALIGNMENT`, which the caller arranges by placing it so in an :func:`aligned_buffer`.
        """
        stop = position + len(data)
        first = -(-position // ALIGNMENT) * ALIGNMENT
        last = stop // ALIGNMENT * ALIGNMENT
        if self._direct is None or first >= last:
            self._write_buffered(data, position)
            return
        done = self._write_direct(data[first - position : last - position], first)
        self._write_buffered(data[: first - position], position)
        self._write_buffered(data[done - position :], done)

    def _write_direct(self, data: memoryview, position: int) -> int:
        """Write the aligned ``data``; returns how far it came (a file system may refuse at any time)."""
        while data and self._direct is not None:
            try:
                count = write_at(self._direct, data, position)
            except OSError as error:
                if error.errno != errno.EINVAL:  # direct writes are not for this file or this memory
                    raise
                break
            count -= count % ALIGNMENT
            if count == 0:
                break
            data, position = data[count:], position + count
        return position

    def _write_buffered(self, data: memoryview, position: int) -> None:
        write_all_at(self._buffered, data, position)


def write_all_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Write all of ``data`` at ``position``, however many calls it takes.

    Raises
    ------
    OSError
        The system wrote nothing.
    """
    view = memoryview(data)
    while view:
        count = write_at(descriptor, view[:_CHUNK], position)
        if count == 0:
            raise OSError(errno.EIO, "the system wrote nothing")
        view, position = view[count:], position + count


def _open_direct(descriptor: int) -> int | None:
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return None
    with contextlib.suppress(OSError):
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | flag)
    return None
