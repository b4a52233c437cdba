"""Files that appear whole or not at all.

An output is written under no name at all (``O_TMPFILE``, where Linux and the file system have it) or
under a temporary one beside its place, synced, and renamed into place; then the folder is synced. A
crash, a kill or a full disk leaves what stood there before; the nameless file leaves no litter either.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from paramerge.checkpoints.dtypes import NUMPY
from paramerge.checkpoints.file_names import cut_name
from paramerge.checkpoints.header import encode_header
from paramerge.errors import OutputError
from paramerge.system_faults import meaning

__all__ = [
    "exchange_names",
    "make_folder",
    "new_file",
    "output_error",
    "sync_folder",
    "write_bytes",
    "write_safetensors",
]

_DTYPE_NAMES = {dtype: name for name, dtype in NUMPY.items()}


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[int]:
    """Give a file descriptor to write to; at the end of the block its content stands at ``path``.

    A symbolic link at ``path`` is followed, so the link stays and its target is replaced. The mode of a
    file that stood there is kept; a new file gets the umask's. If the block raises, ``path`` is as it was.

    Raises
    ------
    OutputError
        The folder is missing or may not be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    try:
        descriptor, temporary = _open_unnamed(target.parent), None
        if descriptor is None:
            temporary = _temporary_name(target)
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOEXEC, 0o666)
    except OSError as error:
        raise output_error(error, target) from error
    try:
        try:
            yield descriptor
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            os.fsync(descriptor)
            if temporary is None:
                temporary = _give_name(descriptor, target)
        finally:
            os.close(descriptor)
        temporary.replace(target)
        temporary = None
        sync_folder(target.parent)
    except OSError as error:
        raise output_error(error, target) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a small file whole or not at all (see :func:`new_file`)."""
    with new_file(path) as descriptor:
        _write_all(descriptor, data)


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` (in the order given, any dtype of :data:`paramerge.checkpoints.dtypes.NUMPY`).

    For adapters and other files that fit in memory; checkpoints are streamed by :mod:`paramerge.merge.bake`.
    """
    arrays = {key: np.asarray(array, order="C") for key, array in tensors.items()}
    entries = [(key, _DTYPE_NAMES[a.dtype], a.shape, a.nbytes) for key, a in arrays.items()]
    with new_file(path) as descriptor:
        _write_all(descriptor, encode_header(entries, metadata or {}))
        for array in arrays.values():
            _write_all(descriptor, array.reshape(-1).view(np.uint8).data)


def make_folder(folder: Path) -> None:
    """Make the folder and those above it, where they are not there yet.

    Raises
    ------
    OutputError
        It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be made ({error.strerror})", where=folder, hint="choose another output"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where the system can sync a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows cannot open folders; there the rename itself is all one can do
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange_names(a: Path, b: Path) -> bool:
    """Let two names trade places at one stroke, where the system can; else False, and nothing happened.

    For folders: a rename puts a file over another, but never a folder over one that is not empty.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    result: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return result == 0


def output_error(error: OSError, path: Path) -> OutputError:
    """What an ``OSError`` while writing ``path`` means, in the form the user reads."""
    special = {
        errno.ENOENT: ("the folder does not exist", f"create it: mkdir -p {path.parent}"),
        errno.EISDIR: ("a folder stands where the file should be written", "choose another output"),
        errno.EACCES: ("there is no permission to write here", "choose another output"),
    }
    what, hint = special.get(error.errno or 0) or meaning(error)
    return OutputError(
        f"the output cannot be written: {what}",
        where=path,
        hint=hint + "; what stood there before is untouched",
    )


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{cut_name(target.name)}.{secrets.token_hex(6)}.partial")


def _open_unnamed(folder: Path) -> int | None:
    """A file without a name in ``folder``, or None where that cannot be had."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | _CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise


def _give_name(descriptor: int, target: Path) -> Path:
    name = _temporary_name(target)
    folder = os.open("/proc/self/fd", os.O_RDONLY)
    try:  # only with a folder's descriptor does Python call linkat, which follows the link to the open file
        os.link(str(descriptor), name, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)
    return name


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
