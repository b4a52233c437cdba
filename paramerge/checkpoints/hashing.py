"""SHA-256 of large files, computed once and remembered.

The cache (one small JSON file in the user's cache folder) knows a file by its size, modification time,
inode and device, never by its name alone. It only ever saves work: delete it at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs

from paramerge.checkpoints.writer import write_bytes
from paramerge.errors import ParamergeError
from paramerge.system_faults import read_error, reading

__all__ = ["HashBeside", "cached_sha256", "file_sha256", "legacy_hash", "remember_sha256"]

_BLOCK = 1 << 20
_SETTLED_SECONDS = 2.0
"""A file changed less than this ago may change again within its time stamp's resolution: not remembered."""

_LEGACY_OFFSET, _LEGACY_LENGTH = 0x100000, 0x10000


def cached_sha256(path: Path) -> str | None:
    """The SHA-256 (hex) of ``path`` if it is known without reading the file, else None."""
    with reading(path):
        entry = _load().get(_identity(path.stat()))
    return entry if isinstance(entry, str) and len(entry) == 64 else None


def file_sha256(path: Path) -> str:
    """The SHA-256 (hex) of the whole file, from the cache or by reading it once."""
    known = cached_sha256(path)
    if known is not None:
        return known
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with reading(path), open(path, "rb", buffering=0) as stream:
        before = path.stat()
        while count := stream.readinto(buffer):
            digest.update(view[:count])
    remember_sha256(path, digest.hexdigest(), before)
    return digest.hexdigest()


class HashBeside:
    """The SHA-256 of a file, computed in a thread of its own while others read the same file.

    ``reached`` tells how many bytes the others are through. The hash keeps within a window of them, so that
    every block is read from the disk once and found in the page cache the second time.
    """

    _WINDOW = 256 << 20

    def __init__(self, path: Path, reached: Callable[[], int]) -> None:
        self._path = path
        self._reached = reached
        with reading(path):
            self._before = path.stat()
        self._stopped = threading.Event()
        self._others_done = threading.Event()
        self._digest: str | None = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Wait for the end of the file; remembers and returns the hash (hex)."""
        self._others_done.set()
        self._thread.join()
        if self._error is not None:
            raise read_error(self._error, self._path) from self._error
        if self._digest is None:
            raise RuntimeError("the hash was stopped")
        remember_sha256(self._path, self._digest, self._before)
        return self._digest

    def stop(self) -> None:
        """Give up."""
        self._stopped.set()
        self._others_done.set()

    def _run(self) -> None:
        digest = hashlib.sha256()
        buffer = bytearray(_BLOCK)
        view = memoryview(buffer)
        position = 0
        try:
            with open(self._path, "rb", buffering=0) as stream:
                while count := stream.readinto(buffer):
                    digest.update(view[:count])
                    position += count
                    while position > self._reached() + self._WINDOW and not self._others_done.wait(0.01):
                        pass
                    if self._stopped.is_set():
                        return
        except OSError as error:
            self._error = error
            return
        self._digest = digest.hexdigest()


def remember_sha256(path: Path, digest: str, before: os.stat_result) -> None:
    """Keep ``digest`` for ``path``, unless the file changed since ``before`` was taken or only just now."""
    with reading(path):
        now = path.stat()
    if _identity(now) != _identity(before) or time.time() - now.st_mtime < _SETTLED_SECONDS:
        return
    entries = _load()
    entries[_identity(now)] = digest
    # a cache that cannot be written costs time, not correctness
    with contextlib.suppress(OSError, ParamergeError):
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_bytes(_cache_file(), json.dumps(entries, indent=0, sort_keys=True).encode())


def legacy_hash(path: Path) -> str:
    """The 8-digit hash of old web UIs (64 KiB at 1 MiB), which kohya still writes: a hint, no proof."""
    with reading(path), open(path, "rb") as stream:
        stream.seek(_LEGACY_OFFSET)
        return hashlib.sha256(stream.read(_LEGACY_LENGTH)).hexdigest()[:8]


def _identity(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}-{status.st_dev}"


def _cache_file() -> Path:
    return Path(platformdirs.user_cache_dir("paramerge")) / "sha256.json"


def _load() -> dict[str, object]:
    try:
        entries = json.loads(_cache_file().read_bytes())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
