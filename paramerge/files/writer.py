"""Files that appear whole or not at all.

An output is written under no name at all (``O_TMPFILE``, where Linux and the file system have it) or under a
temporary one beside its place, synced, and linked or renamed into place; then the folder is synced. A crash,
a kill or a full disk leaves the old file. A temporary name may stay after a kill: its file is locked while
its process lives, so that the next run in the folder can recognise and remove it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from paramerge.errors import OutputError, ParamergeError
from paramerge.files.dtypes import NUMPY
from paramerge.files.header import encode_header
from paramerge.files.stages import STAGE, clear_stale, lock_open, stage_path_of
from paramerge.files.system_calls import BINARY, RENAMES_OPEN_FILES, read_at, set_mode
from paramerge.system_faults import meaning
from paramerge.wording import option

_DTYPE_NAMES = {dtype: name for name, dtype in NUMPY.items()}
_APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY | getattr(os, "O_NONBLOCK", 0)


@contextlib.contextmanager
def new_file(
    path: str | os.PathLike[str], *, overwrite: bool = True, is_output: bool = True
) -> Iterator[int]:
    """Give a file descriptor to write to; at the end of the block its content is at ``path``.

    A symbolic link at ``path`` is followed, so the link stays and its target is replaced. The mode of an
    existing file is kept; a new file gets the umask's. If the block raises, ``path`` is as it was.

    Parameters
    ----------
    overwrite:
        Whether an existing file may be replaced.
    is_output:
        Whether :func:`written_outputs` should list it: not caches, or parts of an output.

    Raises
    ------
    OutputError
        The folder is missing or may not be written, the disk is full, or a file exists there and may not be
        replaced.
    """
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    placed = False
    try:
        clear_stale(target.parent)
        descriptor, temporary = _open_new(target)
        is_open = True
        try:
            yield descriptor
            with contextlib.suppress(FileNotFoundError):
                set_mode(descriptor, stat.S_IMODE(target.stat().st_mode))
            os.fsync(descriptor)
            if is_output and not _in_stage(target):
                note_placing(target, os.fstat(descriptor))
            if not RENAMES_OPEN_FILES:
                os.close(descriptor)
                is_open = False
            if overwrite:
                temporary = temporary or _give_name(descriptor, stage_path_of(target))
                temporary.replace(target)
            elif temporary is None:
                _give_name(descriptor, target)
            else:
                _rename_to_new(temporary, target)
            placed, temporary = True, None
        except BaseException:
            with contextlib.suppress(OSError):
                if is_open:
                    os.close(descriptor)
            raise
        if is_open:
            os.close(descriptor)
        sync_folder(target.parent)
    except FileExistsError as error:
        raise OutputError(
            "a file appeared at the output meanwhile, and is left as it is",
            where=target,
            hint=f"give another name, or replace it with {option('overwrite')}",
        ) from error
    except OSError as error:
        whole = placed and not _in_stage(target)
        raise (unconfirmed(error, target) if whole else output_error(error, target)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(
    path: str | os.PathLike[str], data: bytes, *, overwrite: bool = True, is_output: bool = True
) -> None:
    """Write a small file whole or not at all (see :func:`new_file`)."""
    with new_file(path, overwrite=overwrite, is_output=is_output) as descriptor:
        _write_all(descriptor, data)


def append_line(path: Path, line: bytes, *, durable: bool = True) -> None:
    """Add a line to a file that grows, all of it, and sync it where it is to be ``durable``.

    Raises
    ------
    OutputError
        The disk is full, and the like.
    """
    try:
        descriptor = os.open(path, _APPENDING, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OutputError("this is not a regular file", where=path)
            _write_all(descriptor, line)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise output_error(error, path) from error


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = True,
) -> None:
    """Write ``tensors`` (in the order given, any dtype of :data:`paramerge.files.dtypes.NUMPY`).

    For adapters and other files that fit in memory; checkpoints are streamed by :mod:`paramerge.bake.bake`.
    """
    arrays = {key: np.asarray(array, order="C") for key, array in tensors.items()}
    entries = [(key, _DTYPE_NAMES[a.dtype], a.shape, a.nbytes) for key, a in arrays.items()]
    header = encode_header(entries, metadata or {})
    with new_file(path, overwrite=overwrite) as descriptor:
        _write_all(descriptor, header)
        for array in arrays.values():
            _write_all(descriptor, array.reshape(-1).view(np.uint8).data)
        size = len(header) + sum(array.nbytes for array in arrays.values())
        check_written(descriptor, header, size, path)


def check_written(descriptor: int, header: bytes, size: int, path: str | os.PathLike[str]) -> None:
    """Read the header of a finished file back, and its size; ``path`` is its later place.

    Raises
    ------
    OutputError
        They differ from what was written.
    """
    found, position = memoryview(bytearray(len(header))), 0
    while position < len(header):
        count = read_at(descriptor, found[position:], position)
        if count == 0:
            break
        position += count
    if found[:position] != header or os.fstat(descriptor).st_size != size:
        raise OutputError(
            "the file reads back as something else than was written, and is thrown away",
            where=path,
            expected=f"{size} bytes, with the header that was written",
            found=f"{os.fstat(descriptor).st_size} bytes",
            hint="check the disk, or write to another one",
        )


def make_folder(folder: Path) -> None:
    """Make the folder and those above it, where they are not there yet, durably.

    Raises
    ------
    OutputError
        It cannot be made.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in reversed(new):
            sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be made ({error.strerror})", where=folder, hint="choose another output"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where the system can sync a folder.

    Raises
    ------
    OSError
        The system could, and failed.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if os.name == "posix" and error.errno not in _NO_FOLDER_SYNC:
            raise


def note_placing(target: Path, status: os.stat_result) -> None:
    """Note that the file of ``status`` is about to get the name ``target`` (see :func:`written_outputs`)."""
    _placed[target] = (status.st_dev, status.st_ino)


def written_outputs() -> list[Path]:
    """The files and folders that this process put in their places, as far as they are still there."""
    found = []
    for path, identity in _placed.items():
        with contextlib.suppress(OSError):
            status = path.stat()
            if (status.st_dev, status.st_ino) == identity:
                found.append(path)
    return found


def forget_outputs() -> None:
    """Begin anew with the list of :func:`written_outputs`."""
    _placed.clear()


def exchange_names(a: Path, b: Path) -> bool:
    """Let two names trade places at one stroke, where the system can; else False, and nothing happened.

    For folders: a rename puts a file over another, but never a folder over one that is not empty.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    result: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return result == 0


def output_error(error: OSError, path: Path) -> ParamergeError:
    """The error for an ``OSError`` while writing ``path``; an input that is missing is its own."""
    if isinstance(error, ParamergeError):
        return error
    special = {
        errno.ENOENT: ("the folder does not exist", f"create it: mkdir -p {path.parent}"),
        errno.EISDIR: ("the output is a folder, and a file is to be written", "choose another output"),
        errno.EACCES: ("there is no permission to write here", "choose another output"),
    }
    what, hint = special.get(error.errno or 0) or meaning(error)
    if error.errno == errno.ENOENT and os.path.isdir(path.parent):  # noqa: PTH112 - never raises
        what, hint = "no file can be made in this folder", "choose another output"  # such as /proc
    if error.errno == errno.EEXIST and os.path.isdir(error.filename or ""):  # noqa: PTH112 - never raises
        # libraries make folders that may be there already, and this one could not be looked at
        what, hint = "the system did not say what is there", "check the disk, and try again"
    return OutputError(
        f"the output cannot be written: {what}",
        where=path,
        hint=hint + "; the old output is untouched",
    )


def unconfirmed(error: OSError, path: Path) -> OutputError:
    """The error for an output that is in its place, where the system then failed to make that durable."""
    return OutputError(
        "the output is there and whole, but the system could not confirm that it is safe on the disk",
        where=path,
        found=error.strerror,
        hint="look after the disk, and write it again if the machine fails",
    )


_placed: dict[Path, tuple[int, int]] = {}
_NO_FOLDER_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _open_new(target: Path) -> tuple[int, Path | None]:
    """A file to write, locked, and its temporary name where it has one."""
    descriptor = _open_unnamed(target.parent)
    if descriptor is not None:
        lock_open(descriptor)
        return descriptor, None
    while True:
        temporary = stage_path_of(target)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        lock_open(descriptor)
        if temporary.exists():
            return descriptor, temporary
        os.close(descriptor)  # another process took it for a dead one before it was locked


def _in_stage(target: Path) -> bool:
    """Whether ``target`` is part of a folder that is not in its place yet."""
    return any(STAGE.fullmatch(folder.name) for folder in target.parents)


def _rename_to_new(a: Path, b: Path) -> None:
    """Rename a file, never over another; raises FileExistsError."""
    try:
        os.link(a, b)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, such as FAT
        if os.path.lexists(b):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), b) from None
        a.rename(b)
    else:
        a.unlink(missing_ok=True)


def _open_unnamed(folder: Path) -> int | None:
    """A file without a name in ``folder``, or None where that cannot be had."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | BINARY, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise


def _give_name(descriptor: int, name: Path) -> Path:
    folder = os.open("/proc/self/fd", os.O_RDONLY)
    try:  # only with a folder's descriptor does Python call linkat, which follows the link to the open file
        os.link(str(descriptor), name, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)
    return name


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        count = os.write(descriptor, view)
        if count == 0:
            raise OSError(errno.EIO, "the system wrote nothing")
        view = view[count:]
