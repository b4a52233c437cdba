"""The place of an output, checked before any work: one rule for every verb and every format.

An output is never an input (under any name), is never in an input's folder, is a regular file or a folder of
them, and replaces an existing one only where the caller says ``overwrite``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from paramerge.arguments import as_path
from paramerge.errors import OutputError
from paramerge.files.file_names import fault_on_windows
from paramerge.files.header import PICKLE_SUFFIXES
from paramerge.files.source import Opened
from paramerge.files.staging import restore_folder, strangers
from paramerge.files.writer import output_error
from paramerge.wording import option

_SAFETENSORS = ".safetensors"
_STREAM = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/[^/]+/(task/[^/]+/)?fd/\d+")
_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a disk",
}
_SHOWN = 4
"""Files of other people that an error names, at most."""


class OpenedAt(Opened, Protocol):
    """An adapter or a base, with the path that it was opened by."""

    @property
    def path(self) -> Path:
        """The file or folder."""


def inputs_of(*opened: OpenedAt | None) -> list[Path]:
    """The files, and folders, that opened adapters and bases were read from; None counts as nothing."""
    paths: list[Path] = []
    for item in opened:
        if item is None:
            continue
        files = [source.path for source in item.opened]
        paths += [item.path, *files]
        if len(files) > 1 and item.path in files:  # an adapter with its configuration beside it is a folder
            paths.append(item.path.parent)
    return paths


def check_output_file(
    path: str | os.PathLike[str],
    inputs: Iterable[Path] = (),
    *,
    overwrite: bool = False,
    suffix: str | None = _SAFETENSORS,
) -> Path:
    """Refuse a file that may not be written; else give the path to write to.

    Parameters
    ----------
    inputs:
        Files and folders that the output must not be, or lie in (see :func:`inputs_of`).
    overwrite:
        Whether an existing file may be replaced.
    suffix:
        The ending that the file must have, such as ``.png``; None for any.

    Returns
    -------
    Path
        ``path``, with ``suffix`` added where its name has no ending.

    Raises
    ------
    OutputError
    """
    path = as_path(path, "output")
    with _faults_of(path):
        _refuse_stream(path)
        _refuse_name(path)
        _refuse_folder_or_special(path, suffix)
        named = _with_ending(path, suffix)
        if named != path:
            _refuse_folder_or_special(named, suffix)
        real = Path(os.path.realpath(named))
        _refuse_inputs(named, real, inputs)
        if real.exists() and not overwrite:
            raise OutputError(
                "the output exists already",
                where=named,
                hint=f"give another name, or replace it with {option('overwrite')}",
            )
        _check_parent(named, real)
    return named


def check_output_folder(
    path: str | os.PathLike[str],
    inputs: Iterable[Path] = (),
    *,
    overwrite: bool = False,
    files: Iterable[str] | None = None,
) -> Path:
    """Refuse a folder that may not be written; else give its path.

    The folder must be new or empty. With ``overwrite`` it may also be one that paramerge wrote, in which
    nothing has been put or changed since: its recipe lists its files with their hashes.

    Parameters
    ----------
    inputs:
        Files and folders that the output must not be, hold, or lie in (see :func:`inputs_of`).
    files:
        For a folder that is written file by file and may hold others: the names of those that will be
        written, each of which is checked as a file of its own.

    Raises
    ------
    OutputError
    """
    path = as_path(path, "output")
    inputs = list(inputs)
    with _faults_of(path):
        _refuse_stream(path)
        _refuse_name(path)
        _refuse_file(path)
        real = Path(os.path.realpath(path))
        restore_folder(real)
        _refuse_inputs(path, real, inputs, holds=files is None)
        _check_parent(path, real)
        if not real.exists():
            return path
        if files is not None:
            for name in files:
                check_output_file(path / name, inputs, overwrite=overwrite, suffix=None)
        else:
            _check_movable(path, real)
            if any(real.iterdir()):
                _check_content(path, real, overwrite)
    return path


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """The system's fault with ``path``, as an error of paramerge."""
    try:
        yield
    except OSError as error:
        raise output_error(error, path) from error
    except ValueError as error:  # a NUL, or characters that no name can hold
        raise OutputError(
            "this is no name for a file", where=path, found=str(error), hint="choose another output"
        ) from error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, which all names of one file share; None where there is nothing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _refuse_stream(path: Path) -> None:
    if str(path) == "-" or _STREAM.fullmatch(os.path.normpath(path.absolute())):
        raise OutputError(
            "the output cannot be a stream: it is put in its place when it is whole",
            where=path,
            expected="the name of a file or folder",
        )


def _refuse_special(path: Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise OutputError(
            "the output is no regular file, and is left alone",
            where=path,
            found=_SPECIAL.get(kind, "neither a file nor a folder"),
            hint="give another name",
        )


def _refuse_folder_or_special(path: Path, suffix: str | None) -> None:
    status = _status(path)
    if status is None:
        return
    _refuse_special(path, status)
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(
            "the output is a folder, and a file is to be written",
            where=path,
            hint=f"give the name of a file, such as {path / f'merged{suffix or _SAFETENSORS}'}",
        )


def _refuse_file(path: Path) -> None:
    """Refuse a path that cannot be, or become, a folder."""
    status = _status(path)
    if status is not None:
        _refuse_special(path, status)
        if not stat.S_ISDIR(status.st_mode):
            raise OutputError(
                "the output is a file, and a folder is to be written", where=path, hint="give another name"
            )
    elif path.suffix.lower() in (_SAFETENSORS, *PICKLE_SUFFIXES):
        raise OutputError(
            "the output is a folder, and this is the name of a file",
            where=path,
            hint=f"give a folder name, such as {path.with_suffix('')}",
        )


def _with_ending(path: Path, suffix: str | None) -> Path:
    """``path`` with ``suffix``, which is added where there is none.

    An ending is letters alone: ``style-v1.5`` and ``style.fp16`` have none.
    """
    if suffix is None or path.suffix.lower() == suffix:
        return path
    ending = path.suffix[1:]
    if not path.name or path.name.lower() == suffix or (ending.isalpha() and ending.isascii()):
        pickle = path.suffix.lower() in PICKLE_SUFFIXES
        raise OutputError(
            f"the output is a {suffix} file",
            where=path,
            expected=f"a name that ends in {suffix}",
            found=f"{path.suffix}, the name of a pickle" if pickle else path.suffix or "no name",
            hint=f"give {path.with_suffix(suffix)}" if path.suffix else "give a file name",
        )
    return path.with_name(path.name + suffix)


def _refuse_inputs(path: Path, real: Path, inputs: Iterable[Path], *, holds: bool = False) -> None:
    """Refuse an output that is an input or inside one; with ``holds``, also one with an input inside."""
    own = _identity(real)
    above = {found for parent in real.parents if (found := _identity(parent))}
    for source in inputs:
        identity = _identity(source)
        if identity is None:
            continue
        if identity in above:
            raise OutputError(
                "the output is inside an input's folder",
                where=path,
                found=f"a place in {source}",
                hint="give another name: inputs are never changed",
            )
        around = {*source.absolute().parents, *Path(os.path.realpath(source)).parents}
        if own is not None and (identity == own or (holds and own in map(_identity, around))):
            raise OutputError(
                "the output is one of the inputs",
                where=path,
                found=f"the same as {source}" if identity == own else f"the folder of {source}",
                hint="give another name: inputs are never overwritten",
            )


def _refuse_name(path: Path) -> None:
    """Refuse a name of which Windows makes something else, where this is Windows."""
    if os.name == "nt" and (fault := fault_on_windows(path.name)):
        raise OutputError(
            "a file cannot have this name on Windows", where=path, found=fault, hint="give another name"
        )


def _check_parent(path: Path, real: Path) -> None:
    """Refuse a place whose folder is missing or may not be written."""
    status = _status(real.parent)
    if status is None:
        raise OutputError(
            "the folder of the output does not exist", where=path, hint=f"create it: mkdir -p {path.parent}"
        )
    if not stat.S_ISDIR(status.st_mode):
        raise OutputError("a part of the path is not a folder", where=path, found=f"{real.parent} is a file")
    if hasattr(os, "statvfs") and os.statvfs(real.parent).f_flag & os.ST_RDONLY:
        raise OutputError("the file system is read-only", where=path, hint="write to another place")
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise OutputError("there is no permission to write here", where=path, hint="choose another output")


def _check_content(path: Path, real: Path, overwrite: bool) -> None:
    """Refuse a folder with files, but for one of ours that may be replaced."""
    others = strangers(real)
    if others is None:
        raise OutputError(
            "the folder at the output is not empty",
            where=path,
            found="no recipe of paramerge that lists what is there",
            hint="give another name, or move the folder away",
        )
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise OutputError(
            "the folder at the output holds files that paramerge did not write, or that were changed since",
            where=path,
            found=", ".join(others[:_SHOWN]) + more,
            hint="move them away, or give another name",
        )
    if not overwrite:
        raise OutputError(
            "the output exists already, a folder that paramerge wrote",
            where=path,
            hint=f"give another name, or replace it with {option('overwrite')}",
        )


def _check_movable(path: Path, real: Path) -> None:
    """Refuse a folder that a new one cannot take the place of."""
    if os.path.ismount(real):
        raise OutputError(
            "the output is where a file system is mounted, and cannot be exchanged as a whole",
            where=path,
            hint=f"give a folder inside it, such as {path / 'model'}",
        )
    if real in (here := Path.cwd(), *here.parents):
        raise OutputError(
            "the output is the current folder, or contains it",
            where=path,
            hint=f"give a folder inside it, such as {path / 'model'}",
        )
