"""Run paramerge's command line with a system like Windows, as far as Linux can play it:

    python windows_like.py '[["VERB", ...], ...]'

Each command line of the JSON in turn; the exit codes are printed, as JSON, in the last line.

Gone is what Windows lacks: positioned reads and writes, ``fchmod``, locks, limits, files without names.
Refused is what it refuses: a rename or removal of what is open, a rename over something, opening a folder,
syncing what is open for reading. A file that is opened as text, where Windows would change its bytes, ends
the program.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata  # noqa: F401
import json
import os
import pathlib
import shutil
import sys
import types
from collections.abc import Callable
from typing import Any

# these look at the system when they are imported, and find the true one
import click  # noqa: F401
import huggingface_hub  # noqa: F401
import jinja2  # noqa: F401
import ml_dtypes  # noqa: F401
import platformdirs  # noqa: F401
import rich.console
import rich.progress
import rich.table  # noqa: F401
import torch  # noqa: F401

_ABSENT = (
    "pread preadv pwrite pwritev fchmod fchown posix_fallocate copy_file_range sendfile statvfs geteuid "
    "getuid O_TMPFILE O_DIRECT O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_DIRECTORY O_NOCTTY sched_getaffinity"
)
_BINARY = 1 << 40
"""The flag ``O_BINARY`` of this system: no bit of Linux's."""


def _open_files() -> set[str]:
    found = set()
    for entry in _listdir("/proc/self/fd"):
        try:
            found.add(_readlink(f"/proc/self/fd/{entry}"))
        except OSError:
            continue
    return found


def _refuse_open(path: Any) -> None:
    real = os.path.realpath(os.fspath(path))
    if any(name == real or name.startswith(f"{real}/") for name in _open_files()):
        raise PermissionError(errno.EACCES, "it is being used by another process", str(path))


def _guarded(call: Callable[..., Any], paths: int, *, new: bool = False) -> Callable[..., Any]:
    def guarded(*arguments: Any, **options: Any) -> Any:
        for path in arguments[:paths]:
            _refuse_open(path)
        if new and os.path.lexists(arguments[1]):
            raise FileExistsError(errno.EEXIST, "it exists already", str(arguments[1]))
        return call(*arguments, **options)

    return guarded


def _opened(path: Any, flags: int, *rest: Any, **options: Any) -> int:
    if _isdir(path):
        raise PermissionError(errno.EACCES, "it is a folder", str(path))
    if not flags & _BINARY and os.fspath(path) != os.devnull:
        os.write(2, f"opened as text: {path}\n".encode())
        os._exit(99)
    return _open(path, flags & ~_BINARY, *rest, **options)


def _synced(descriptor: int) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "it is open for reading alone")
    _fsync(descriptor)


class _PosixPaths(types.ModuleType):
    """``os`` for pathlib, which makes the paths of the system that it finds."""

    name = "posix"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


_open, _fsync, _listdir, _readlink, _isdir = os.open, os.fsync, os.listdir, os.readlink, os.path.isdir
_statvfs = os.statvfs


def _disk_usage(path: Any) -> tuple[int, int, int]:
    found = _statvfs(path)
    return found.f_blocks * found.f_frsize, 0, found.f_bavail * found.f_frsize


def become_windows() -> None:
    """Change ``os`` of this process; paramerge must not be imported yet."""
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(*_disk_usage(path))  # type: ignore[attr-defined]
    for name in _ABSENT.split():
        if hasattr(os, name):
            delattr(os, name)
    for name in ("fcntl", "resource", "grp", "pwd"):
        sys.modules[name] = None  # type: ignore[assignment]
    os.O_BINARY = _BINARY  # type: ignore[attr-defined]
    os.open, os.fsync = _opened, _synced
    os.rename = _guarded(os.rename, 2, new=True)
    os.replace = _guarded(os.replace, 2)
    for name in ("unlink", "remove", "rmdir"):
        setattr(os, name, _guarded(getattr(os, name), 1))
    pathlib.os = _PosixPaths("os")  # type: ignore[attr-defined]
    os.name = "nt"


if __name__ == "__main__":
    become_windows()
    from paramerge.cli.main import main

    codes = []
    for arguments in json.loads(sys.argv[1]):
        try:
            main(arguments)
        except SystemExit as stop:
            codes.append(stop.code)
    print(f"\n{json.dumps(codes)}")
