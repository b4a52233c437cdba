"""SHA-256 of large files, computed once and remembered.

The cache (one small JSON file in the user's cache folder) knows a file by its size, times, inode and device,
never by its name, and by some blocks of its bytes, which are read again before a hash is believed. It only
ever saves work: delete it at any time, or have it distrusted with :func:`distrust_cache`.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from paramerge.errors import FileFormatError, ParamergeError, UsageError
from paramerge.files.source import Source
from paramerge.files.writer import write_bytes
from paramerge.strict_json import parse

_SETTLED_SECONDS = 2.0
"""A file changed less than this ago may change again within its time stamp's resolution: not remembered."""

_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16
"""Blocks of a file, from its first bytes to its last, that must be the same for a hash to be believed."""

_MAX_CACHE_BYTES = 16 << 20
_MAX_ENTRIES = 20_000
_ENTRY = re.compile(r"[0-9a-f]{64}:[0-9a-f]{64}")
"""An entry: the SHA-256 of the file and that of its samples."""

_LEGACY_OFFSET, _LEGACY_LENGTH = 0x100000, 0x10000

_distrusted: contextvars.ContextVar[bool] = contextvars.ContextVar("distrusted", default=False)


@contextlib.contextmanager
def distrust_cache() -> Iterator[None]:
    """Within the block every hash is computed from the file's bytes (and remembered)."""
    token = _distrusted.set(True)
    try:
        yield
    finally:
        _distrusted.reset(token)


def cached_sha256(source: Source) -> str | None:
    """The SHA-256 (hex) of ``source`` if it is known without reading all of the file, else None."""
    if _distrusted.get():
        return None
    digest, _, samples = _load().get(_identity(source), "").partition(":")
    return digest if digest and samples == _sampled(source) else None


def source_sha256(source: Source) -> str:
    """The SHA-256 (hex) of the whole file, from the cache or by reading it once.

    For large files; of small ones, such as adapters, :meth:`Source.sha256` hashes the very bytes.
    """
    known = cached_sha256(source)
    if known is not None:
        return known
    digest = source.sha256()
    remember_sha256(source, digest)
    return digest


def file_sha256(path: Path) -> str:
    """The SHA-256 (hex) of the file at ``path``, as :func:`source_sha256`."""
    return source_sha256(Source.open(path))


def checked_sha256(text: str) -> str:
    """``text``, which is a SHA-256 in hex; raises UsageError for any other."""
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise UsageError(
            "this is not a SHA-256", where="base_sha256", expected="64 digits, 0-9 and a-f", found=text
        )
    return text


class HashBeside:
    """The SHA-256 of a file, computed in a thread of its own while others read the same file.

    ``reached`` gives the number of bytes that the others are through. The hash keeps within a window of them,
    so that every block is read from the disk once and found in the page cache the second time.
    """

    _WINDOW = 256 << 20

    def __init__(self, source: Source, reached: Callable[[], int]) -> None:
        self._source = source
        self._reached = reached
        self._stopped = threading.Event()
        self._others_done = threading.Event()
        self._digest: str | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Wait for the end of the file; remembers and returns the hash (hex)."""
        self._others_done.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._digest is None:
            raise RuntimeError("the hash was stopped")
        remember_sha256(self._source, self._digest)
        return self._digest

    def stop(self) -> None:
        """Give up."""
        self._stopped.set()
        self._others_done.set()

    def _run(self) -> None:
        digest = hashlib.sha256()
        position = 0
        try:
            for block in self._source.blocks():
                digest.update(block)
                position += len(block)
                while position > self._reached() + self._WINDOW and not self._others_done.wait(0.01):
                    pass
                if self._stopped.is_set():
                    return
        except Exception as error:
            self._error = error
            return
        self._digest = digest.hexdigest()


def remember_sha256(source: Source, digest: str) -> None:
    """Keep ``digest`` for the file, unless it changed since it was opened or only just before."""
    if source.opened_ns - max(source.stamp.ctime_ns, source.stamp.mtime_ns) < _SETTLED_SECONDS * 1e9:
        return
    # a cache that cannot be written costs time, not correctness
    with contextlib.suppress(OSError, ParamergeError):
        source.check_unchanged()
        samples = _sampled(source)
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        with _one_writer():
            entries = _load()
            entries.pop(_identity(source), None)
            entries[_identity(source)] = f"{digest}:{samples}"  # at the end: the oldest go first
            kept = dict(list(entries.items())[-_MAX_ENTRIES:])
            _clear_the_place()
            write_bytes(_cache_file(), json.dumps(kept, indent=0).encode(), is_output=False)


def legacy_hash(path: Path) -> str:
    """The 8-digit hash of old web UIs (64 KiB at 1 MiB), which kohya still writes: a hint, no proof."""
    source = Source.open(path)
    start = min(_LEGACY_OFFSET, source.size)
    data = source.read(start, min(start + _LEGACY_LENGTH, source.size))
    return hashlib.sha256(data).hexdigest()[:8]


def _identity(source: Source) -> str:
    stamp = source.stamp
    return f"{stamp.size}-{stamp.mtime_ns}-{stamp.ctime_ns}-{stamp.inode}-{stamp.device}"


def _sampled(source: Source) -> str:
    """The SHA-256 (hex) of blocks spread evenly over the file, its first and last bytes among them."""
    digest = hashlib.sha256()
    last = max(0, source.size - _SAMPLE_BYTES)
    for start in sorted({last * index // (_SAMPLES - 1) for index in range(_SAMPLES)}):
        digest.update(source.read(start, min(start + _SAMPLE_BYTES, source.size)))
    return digest.hexdigest()


def _cache_file() -> Path:
    """The cache's path; a user without a home, such as a container's, has none (``FileNotFoundError``)."""
    try:
        folder = Path(platformdirs.user_cache_dir("paramerge"))
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from None
    if not folder.is_absolute():  # older platformdirs leave the tilde
        raise FileNotFoundError(f"no home: {folder}")
    return folder / "sha256.json"


def _load() -> dict[str, str]:
    """The entries of the cache; those that are none, and a file that is no cache, are not there."""
    try:
        source = Source.open(_cache_file())
        if source.size > _MAX_CACHE_BYTES:
            return {}
        entries = parse(source.read(0, source.size))
    except (OSError, ValueError, FileFormatError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {
        key: entry for key, entry in entries.items() if isinstance(entry, str) and _ENTRY.fullmatch(entry)
    }


def _clear_the_place() -> None:
    """Remove anything but a file from the cache's place: a pipe, or a link to a device."""
    path = _cache_file()
    if (path.exists() or path.is_symlink()) and not (path.is_file() or path.is_dir()):
        path.unlink()


@contextlib.contextmanager
def _one_writer() -> Iterator[None]:
    """Let one process at a time add to the cache, where the system has locks; never waits for long."""
    try:
        import fcntl
    except ImportError:  # Windows: two writers at once may lose one of two entries
        yield
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(_cache_file().with_suffix(".lock"), flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("the lock is no file")
        for _ in range(100):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                threading.Event().wait(0.01)
        else:
            raise BlockingIOError("another process has the lock")
        yield
    finally:
        os.close(descriptor)
