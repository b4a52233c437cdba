"""Work that a page waits for: in a thread, with its progress, until it is done or stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Progress = Callable[[int, int], None]
Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818 (a wish, not a fault)
    """The person asked for an end; nothing was written."""


@dataclass(frozen=True, slots=True)
class State:
    """The work's progress: the share that is done, and seconds since its beginning."""

    share: float
    seconds: float


class Job(Generic[Result]):
    """One piece of work; ``do`` is called with a progress function, which ends it when that is asked for."""

    def __init__(self, do: Callable[[Progress], Result]) -> None:
        self._do = do
        self._stop = threading.Event()
        self._done = (0, 1)
        self._began = time.monotonic()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=False)

    def stop(self) -> None:
        """Ask for the end; nothing is left of the work's output."""
        self._stop.set()

    def states(self, every: float = 0.2) -> Iterator[State]:
        """Begin, and tell how far it is until it has ended."""
        self._thread.start()
        while self._thread.is_alive():
            done, total = self._done
            yield State(done / max(1, total), time.monotonic() - self._began)
            self._thread.join(every)

    def result(self) -> Result:
        """The result, once it has ended.

        Raises
        ------
        Stopped
            It was stopped before its end.
        ParamergeError
            Whatever the work raised.
        """
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            self._result = self._do(self._update)
        except Exception as error:  # shown on the page, as nobody looks at the terminal
            self._error = error

    def _update(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._done = (done, total)


class Jobs:
    """The running job of each open page; a page has one at a time."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job[object]] = {}
        self._lock = threading.Lock()

    def begin(self, page: str, job: Job[object]) -> None:
        """Remember the page's job; the one before is stopped."""
        with self._lock:
            before = self._jobs.get(page)
            self._jobs[page] = job
        if before is not None:
            before.stop()

    def stop(self, page: str) -> None:
        """Stop the page's job, if it has one."""
        with self._lock:
            job = self._jobs.pop(page, None)
        if job is not None:
            job.stop()
