"""Faults of the system (``OSError``, ``MemoryError`` and their kin) as errors of paramerge.

Inputs are opened and read inside :func:`reading`, which names the file and the meaning. An error that is
still bare at the top of a program becomes a :class:`ParamergeError` by :func:`as_paramerge_error`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from paramerge.errors import (
    FileFormatError,
    InternalError,
    NonFiniteError,
    ParamergeError,
    SystemFaultError,
    UnreadableError,
    UsageError,
)
from paramerge.missing_files import missing_file

TRACEBACK_VARIABLE = "PARAMERGE_TRACEBACK"
"""The environment variable that has the command line show where an internal error happened."""

_MEANINGS = {
    errno.ENOSPC: ("the disk is full", "free some space, or use another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or use another disk"),
    errno.EFBIG: ("the file would be larger than the system allows", "raise the limit (ulimit -f)"),
    errno.ENOENT: ("there is no such file or folder", "check the path"),
    errno.ENOTDIR: ("a part of the path is not a folder", "check the path"),
    errno.EISDIR: ("this is a folder, not a file", "give a file"),
    errno.EACCES: ("there is no permission", "check who owns it and its mode (ls -ld)"),
    errno.EPERM: ("there is no permission", "check who owns it and its mode (ls -ld)"),
    errno.EROFS: ("the file system is read-only", "use another disk"),
    errno.EIO: ("the disk reports an error (EIO)", "check the disk and its cable, or the network drive"),
    errno.ESTALE: ("the network drive lost the file (ESTALE)", "mount the drive again"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "give a shorter name"),
    errno.ELOOP: ("links lead in a circle", "remove the link"),
    errno.EMFILE: ("too many files are open in this program", "raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("too many files are open in the whole system", "end other programs, then try again"),
    errno.ENOMEM: ("memory is used up", "end other programs, or raise the limit (ulimit -v)"),
    errno.EAGAIN: ("the system refuses for now (EAGAIN)", "try again; check the limits (ulimit -a)"),
    errno.EINTR: ("the system call was interrupted (EINTR)", "try again"),
    errno.EBUSY: ("it is in use (EBUSY)", "try again when nothing else uses it"),
    errno.ETXTBSY: ("it is in use (ETXTBSY)", "try again when nothing else uses it"),
}
_MEMORY_WORDS = ("not enough memory", "can't allocate memory", "out of memory", "failed to allocate")
_THREAD_WORDS = ("can't start new thread", "resource temporarily unavailable")


def meaning(error: OSError) -> tuple[str, str]:
    """The system's fault in words, and the user's next step."""
    if error.errno == errno.ENOENT and not error.filename and _current_folder_is_gone():
        return "the current folder no longer exists", "go to another folder (cd) and try again"
    return _MEANINGS.get(error.errno or 0, (error.strerror or str(error), "check the disk and the path"))


def named_file(error: OSError, otherwise: os.PathLike[str] | str | None = None) -> Path | None:
    """The file that ``error`` itself names, else ``otherwise``."""
    name = error.filename
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str) or name.startswith("/proc/self/fd"):
        name = otherwise
    return None if name is None else Path(name)


def read_error(error: OSError, path: os.PathLike[str] | str | None) -> FileFormatError:
    """The error for an input that cannot be read."""
    where = named_file(error, path)
    if error.errno == errno.ENOENT and error.filename is not None:
        return missing_file(error.filename if where is None else where)
    if error.errno == errno.EISDIR:
        return FileFormatError("this is a folder, not a file", where=where)
    if error.errno in (errno.EACCES, errno.EPERM):
        folder = where is not None and os.path.isdir(where)  # noqa: PTH112 (Path.is_dir would raise)
        kind = "folder" if folder else "file"
        return UnreadableError(f"this {kind} may not be read", where=where, hint=meaning(error)[1])
    what, hint = meaning(error)
    return UnreadableError(f"an input cannot be read: {what}", where=where, hint=hint)


@contextlib.contextmanager
def reading(path: os.PathLike[str] | str) -> Iterator[None]:
    """Turn the system's faults in this block, which reads the input ``path``, into errors that name it.

    Raises
    ------
    UnreadableError
        A system call failed.
    MissingFileError
        There is no such file.
    UsageError
        ``path`` cannot be a file's name.
    """
    try:
        yield
    except ParamergeError:  # one of them is a FileNotFoundError, too
        raise
    except OSError as error:
        raise read_error(error, path) from error
    except ValueError as error:
        if "null byte" in str(error) or (isinstance(error, UnicodeEncodeError) and error.object in str(path)):
            raise UsageError("this cannot be a file's name", where=ascii(str(path))) from None
        raise


def out_of_memory(where: object = None) -> SystemFaultError:
    """The error for memory that is used up."""
    what, hint = _MEANINGS[errno.ENOMEM]
    return SystemFaultError(what, where=where, hint=hint)


def as_paramerge_error(error: Exception) -> ParamergeError:
    """Any exception as an error for the user: a fault of the system, or one of paramerge to be reported."""
    if isinstance(error, ParamergeError):
        return error
    text = str(error).lower()
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _MEMORY_WORDS)
    ):
        return out_of_memory()
    if isinstance(error, OSError):
        what, hint = meaning(error)
        return SystemFaultError(what, where=named_file(error), found=_found(error), hint=hint)
    if isinstance(error, RuntimeError) and any(words in text for words in _THREAD_WORDS):
        return SystemFaultError(
            "the system refuses another thread", found=error, hint="raise the limit: ulimit -u"
        )
    if isinstance(error, ValueError) and "null byte" in text:
        return UsageError("a path holds a NUL byte", hint="give another name")
    if type(error).__name__ in ("LinAlgError", "_LinAlgError"):  # NumPy's and torch's
        return NonFiniteError(
            "a matrix cannot be decomposed", found=error, hint="a weight or an adapter is damaged"
        )
    if isinstance(error, ImportError):
        return SystemFaultError(
            "a library cannot be loaded", found=error, hint="install paramerge again, or raise the limits"
        )
    return _internal(error)


def _internal(error: Exception) -> InternalError:
    kinds = {
        RecursionError: "something is nested too deeply",
        UnicodeError: "a text is not valid Unicode",
    }
    what = next((words for kind, words in kinds.items() if isinstance(error, kind)), "an internal error")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "paramerge" in Path(frame.filename).parts] or frames
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return InternalError(
        what,
        found=f"{type(error).__name__}: {str(error)[:200]}{place}",
        hint=f"please report it, with the output of the same command after {TRACEBACK_VARIABLE}=1",
    )


def _found(error: OSError) -> str | None:
    """The system's own words, where the table has no better ones to say."""
    return None if error.errno in _MEANINGS else f"{type(error).__name__}: {error}"


def _current_folder_is_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
