"""Stages: the temporary names of outputs on the way into their places, and how those of killed processes are
found.

The process that fills a stage holds a lock on it (``flock``), which ends with the process in whatever way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path

from paramerge.files.file_names import cut_name

_HAS_LOCKS = os.name == "posix"
"""Elsewhere dead stages cannot be distinguished from living ones, and stay."""

if _HAS_LOCKS:
    import fcntl

_CLOEXEC = getattr(os, "O_CLOEXEC", 0)

STAGE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.(?P<state>partial|old)", re.DOTALL)
"""Names of outputs on the way into their places, or out of these."""


def stage_name(target: Path) -> str:
    """The part of temporary names made from ``target``: its name, cut to leave room for the rest."""
    if cut_name(target.name) == target.name:
        return target.name
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]
    return f"{cut_name(target.name, 180)}~{digest}"


def stage_path_of(target: Path) -> Path:
    """A new temporary name beside ``target``."""
    return target.with_name(f".{stage_name(target)}.{secrets.token_hex(6)}.partial")


def lock_stage(path: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock on a stage; None where another process has it, or there are no locks.

    The lock lasts until the descriptor is closed, or its process ends in whatever way. With ``wait`` another
    process's lock is waited for, and None says that it removed the stage.
    """
    if not _HAS_LOCKS:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | _CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def clear_stale(folder: Path) -> None:
    """Remove the stages that killed processes left in ``folder``."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return
    for name in names:
        found = STAGE.fullmatch(name)
        stage = folder / name
        # an old folder that stepped aside is put back first: see paramerge.files.staging
        if found is None or found["state"] != "partial" or os.path.lexists(stage.with_suffix(".old")):
            continue
        lock = lock_stage(stage)
        if lock is None:
            continue
        try:
            if stage.is_dir():
                shutil.rmtree(stage, ignore_errors=True)
            else:
                stage.unlink(missing_ok=True)
        except OSError:
            pass
        finally:
            os.close(lock)


def lock_open(descriptor: int) -> None:
    """Lock the open file of a stage, where there are locks."""
    with contextlib.suppress(OSError):  # without locks a stage may stay, no more
        if _HAS_LOCKS:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
