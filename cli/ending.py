"""The end of the command line: signals that clean up, output that cannot be printed, closed pipes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO, cast

from paramerge.errors import OutputError
from paramerge.system_faults import meaning

CLOSED_PIPE = 128 + 13
"""The exit code of a program that printed into a closed pipe, as shells know it."""

_MOMENT = 0.01
"""Seconds."""

_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP: every ``finally`` on the way out runs, and staged outputs are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise :class:`Stopped`, as Ctrl-C does; later ones do not disturb the clean-up.

    A signal that is ignored from the start (``nohup``) stays ignored. Only the main thread gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if _is_finalising(frame):  # Python swallows an error raised there: again, a moment later
            threading.Timer(_MOMENT, os.kill, (os.getpid(), number)).start()
            return
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    named = [getattr(signal, name) for name in _STOPPING if hasattr(signal, name)]  # Windows has no SIGHUP
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number in named if (handler := signal.getsignal(number)) in usual}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_finalising(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def stopping_signal(error: BaseException | None) -> int:
    """The number of the signal behind ``error``, or behind the error that it came from; SIGINT's if there is
    none."""
    while error is not None:
        if isinstance(error, Stopped):
            return error.number
        error = error.__cause__ or error.__context__
    return signal.SIGINT


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard all output until the end of the block, and Python's own end from failing on it.

    Output that cannot be printed raises an error. Notes and warnings on stderr that cannot be written (a full
    disk, a closed pipe) are lost, and the work goes on.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a console that knows 256 letters
    sys.stdout, sys.stderr = _guarded(sys.stdout, _refuse), _guarded(sys.stderr, lambda _: None)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def flush() -> None:
    """Write the output that is still in buffers.

    Raises
    ------
    OutputError
        It cannot be.
    SystemExit
        It goes into a pipe that was closed.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _guarded(stream: TextIO | None, on_fault: Callable[[OSError], None]) -> TextIO:
    """``stream``, or None as it is: Python has none where the shell closed it."""
    return cast(TextIO, None if stream is None else _Guarded(stream, on_fault))


class _Guarded:
    """A text stream that once failed fails for good (click swallows faults), with nothing left to flush."""

    def __init__(self, stream: TextIO, on_fault: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._on_fault = on_fault
        self._fault: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self._fault is None:
            try:
                action()
                return
            except OSError as error:
                _print_nowhere(self._stream)
                self._fault = error
        self._on_fault(self._fault)


def _refuse(error: OSError) -> None:
    if error.errno == errno.EPIPE:
        raise SystemExit(CLOSED_PIPE)  # quietly: nobody reads on
    what, hint = meaning(error)
    raise OutputError(f"the standard output cannot be written: {what}", hint=hint) from error


def _print_nowhere(stream: TextIO) -> None:
    """Drop the rest of ``stream``, so that Python's own end does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
