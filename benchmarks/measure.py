"""Running a command as a user would, and what it took: wall and CPU seconds, peak memory of the process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one run took. ``peak`` is the largest resident memory in bytes."""

    wall: float
    cpu: float
    peak: int


def run(command: Sequence[str], log: Path) -> Cost:
    """Run ``command`` to its end with its output in ``log``; raises if it fails."""
    with open(log, "wb") as stream:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def copy_and_sync(source: Path, target: Path, log: Path) -> Cost:
    """The floor: ``cp`` and ``sync`` of the same bytes."""
    return run(["sh", "-c", f"cp '{source}' '{target}' && sync '{target}'"], log)


def warm(path: Path) -> None:
    """Read a file once, so that it is in the page cache."""
    with open(path, "rb", buffering=0) as stream:
        buffer = bytearray(1 << 22)
        while stream.readinto(buffer):
            pass
