"""Input files, opened once: header, data and hash of a file are of one file, or there is an error.

A :class:`Source` keeps the descriptor it was opened with, so that a file put in its place is never read in
part, and the stamp (size, times, inode, device) that the file had then. :func:`check_unchanged` compares the
stamps again; verbs call it when the last byte is read, before their output gets its name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from paramerge.errors import InputChangedError
from paramerge.files.system_calls import read_at
from paramerge.regular_files import OPEN_FLAGS, open_regular
from paramerge.system_faults import reading

_TICK_NS = 10_000_000
"""Two changes of a file that are nearer in time than this may get the same time stamp."""

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """Numbers that change when a file is written to or another one takes its name."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp in a ``stat`` result (on Windows of size and time of writing alone)."""
        if os.name == "nt":  # there st_ctime is another thing, and stat and fstat have different devices
            return cls(status.st_size, status.st_mtime_ns, 0, 0, 0)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    def differences(self, other: Stamp) -> list[str]:
        """The names of the numbers that differ in ``other``, for people."""
        return [
            _NAMES[part.name]
            for part in fields(self)
            if getattr(self, part.name) != getattr(other, part.name)
        ]


_NAMES = {
    "size": "size",
    "mtime_ns": "time of writing",
    "ctime_ns": "time of change",
    "inode": "inode",
    "device": "device",
}


class Source:
    """A regular file that was opened for reading. Safe to use from several threads.

    Two sources are equal if they have the same path and stamp. The descriptor is closed when the object is
    gone; while there are very many, those used least are closed for a time, and opened again by the path if
    the file there still has the stamp.
    """

    def __init__(self, path: Path, descriptor: int, status: os.stat_result) -> None:
        self.path = path
        self.stamp = Stamp.of(status)
        self.opened_ns = time.time_ns()
        self._held = _Held(path, self.stamp, descriptor)
        self._early: list[tuple[int, int, bytes]] = []
        _DESCRIPTORS.keep(self._held)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Source:
        """Open the file at ``path``; a pipe or a device is refused without waiting for it.

        Raises
        ------
        FileFormatError
            It is missing, no regular file, or may not be read.
        """
        path = Path(path)
        descriptor, status = open_regular(path, opener=_DESCRIPTORS.open)
        try:
            return cls(path, descriptor, status)
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self.stamp.size

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``; raises as :meth:`read_into` does."""
        buffer = bytearray(stop - start)
        self.read_into(memoryview(buffer), start)
        return bytes(buffer)

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill ``view`` (of bytes) with the file's bytes from ``start`` on.

        Raises
        ------
        InputChangedError
            The file became shorter, or another took its place.
        UnreadableError
            The system cannot read it.
        """
        young = time.time_ns() - self.stamp.ctime_ns < _TICK_NS
        done = 0
        with _DESCRIPTORS.use(self._held) as descriptor:
            while done < len(view):
                with reading(self.path):
                    count = read_at(descriptor, view[done:], start + done)
                if count == 0:
                    raise InputChangedError(
                        "the file became shorter while it was read",
                        where=self.path,
                        expected=f"{self.size} bytes",
                        found=f"{start + done} bytes",
                        hint=_AGAIN,
                    )
                done += count
        if young:
            self._early.append((start, len(view), hashlib.blake2b(view, digest_size=16).digest()))

    def sha256(self) -> str:
        """The SHA-256 (hex) of its bytes, read now."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()

    def blocks(self) -> Iterator[memoryview]:
        """All its bytes in order, at most a megabyte at a time; each block is valid until the next."""
        view = memoryview(bytearray(min(_BLOCK, self.size)))
        for start in range(0, self.size, _BLOCK):
            block = view[: min(_BLOCK, self.size - start)]
            self.read_into(block, start)
            yield block

    def check_unchanged(self) -> None:
        """Compare with the file at the path now.

        Raises
        ------
        InputChangedError
            It was written to, replaced or removed since it was opened.
        """
        if self._early:  # read so soon after a change that another change may have left no trace in the times
            time.sleep(max(0, _TICK_NS - (time.time_ns() - self.stamp.ctime_ns)) / 1e9)
        try:
            now = Stamp.of(self.path.stat())
        except OSError as error:
            raise _changed(self.path, f"no longer there ({error.strerror})") from None
        if now != self.stamp:
            raise _changed(self.path, "another " + ", another ".join(self.stamp.differences(now)))
        early, self._early = self._early, []
        for start, length, digest in early:
            if hashlib.blake2b(self.read(start, start + length), digest_size=16).digest() != digest:
                raise _changed(self.path, f"other bytes at {start}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and (self.path, self.stamp) == (other.path, other.stamp)

    def __hash__(self) -> int:
        return hash((self.path, self.stamp))

    def __repr__(self) -> str:
        return f"Source({str(self.path)!r})"

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # not opened at all
            _DESCRIPTORS.give_up(self._held)


class Opened(Protocol):
    """The open files of an adapter or a base."""

    @property
    def opened(self) -> tuple[Source, ...]:
        """The files."""


def check_unchanged(*inputs: Opened | None) -> None:
    """Raise :class:`InputChangedError` for the first file of the ``inputs`` that is not what it was.

    When it returns, all that was read of them, headers and hashes included, was of one state of each file.
    """
    for given in inputs:
        for source in () if given is None else given.opened:
            source.check_unchanged()


_AGAIN = "wait until nothing writes to it any more, and run the command again"


def _changed(path: Path, found: str) -> InputChangedError:
    return InputChangedError(
        "an input file changed while it was in use",
        where=path,
        expected="the file as it was when it was opened",
        found=found,
        hint=_AGAIN,
    )


@dataclass(eq=False, slots=True)
class _Held:
    """A file's descriptor, or None while it is closed for a time, and how many are reading from it."""

    path: Path
    stamp: Stamp
    descriptor: int | None
    users: int = 0


class _Descriptors:
    """The descriptors of all sources, of which a share of what the system allows is open at a time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Held] = OrderedDict()
        self._given_up: deque[_Held] = deque()

    def open(self, path: Path, flags: int) -> int:
        """Open ``path``; where the process has no descriptor left, those kept for later are closed first."""
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        with self._lock:
            self._close_down_to(0)
        return os.open(path, flags)

    def keep(self, held: _Held) -> None:
        """Take in a source that was opened."""
        with self._lock:
            self._close_down_to(self.limit - 1)
            self._open[id(held)] = held

    def close_kept(self) -> None:
        """Close those that nobody reads from just now."""
        with self._lock:
            self._close_down_to(0)

    @contextlib.contextmanager
    def use(self, held: _Held) -> Iterator[int]:
        """The descriptor, which stays open within the block."""
        with self._lock:
            if held.descriptor is None:
                self._close_down_to(self.limit - 1)
                held.descriptor = self._reopened(held)
                self._open[id(held)] = held
            self._open.move_to_end(id(held))
            held.users += 1
            descriptor = held.descriptor
        try:
            yield descriptor
        finally:
            with self._lock:
                held.users -= 1

    def give_up(self, held: _Held) -> None:
        """Close the descriptor of a source that is gone, now or with the next use of another.

        Never waits for the lock: the collector of garbage may come while this very thread has it.
        """
        self._given_up.append(held)
        if self._lock.acquire(blocking=False):
            try:
                self._close_given_up()
            finally:
                self._lock.release()

    def _close_given_up(self) -> None:
        while self._given_up:
            self._close(self._given_up.popleft())

    def _close_down_to(self, count: int) -> None:
        self._close_given_up()
        for held in list(self._open.values())[: max(0, len(self._open) - count)]:
            if not held.users:
                self._close(held)

    def _close(self, held: _Held) -> None:
        self._open.pop(id(held), None)
        if held.descriptor is not None:
            with contextlib.suppress(OSError):  # nothing was written to it: no byte can be lost
                os.close(held.descriptor)
            held.descriptor = None

    @staticmethod
    def _reopened(held: _Held) -> int:
        try:
            descriptor = os.open(held.path, OPEN_FLAGS)
        except OSError as error:
            raise _changed(held.path, f"it cannot be opened again ({error.strerror})") from None
        now = Stamp.of(os.fstat(descriptor))
        if now != held.stamp:
            os.close(descriptor)
            raise _changed(held.path, "another " + ", another ".join(held.stamp.differences(now)))
        return descriptor


def close_kept() -> None:
    """Close the descriptors of sources that nothing reads just now; the next reading opens them again."""
    _DESCRIPTORS.close_kept()


def _limit() -> int:
    """A quarter of the descriptors that the process may have, 256 at most."""
    try:
        import resource
    except ImportError:  # Windows
        return 128
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 256 if soft == resource.RLIM_INFINITY else max(4, min(256, soft // 4))


_DESCRIPTORS = _Descriptors(_limit())
