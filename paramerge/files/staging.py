"""Folders that appear whole or not at all.

A folder is filled under a temporary name beside its place (``.NAME.HEX.partial``), synced, and swapped in by
one rename; the old folder goes out by the same stroke. Where the system cannot exchange two names the old
folder steps aside first (``.NAME.HEX.old``): a kill just then leaves none at its place, and
:func:`restore_folder` puts the old one back on the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from paramerge.errors import OutputError, ParamergeError, UnreadableError
from paramerge.files.source import close_kept
from paramerge.files.stages import STAGE, clear_stale, lock_stage, stage_name, stage_path_of
from paramerge.files.system_calls import move_folder, sync_file
from paramerge.files.writer import (
    exchange_names,
    note_placing,
    output_error,
    sync_folder,
    unconfirmed,
    write_bytes,
)
from paramerge.strict_json import read_object

RECIPE_FILE = "paramerge_recipe.json"
"""In every folder that paramerge writes: how it came about, and the files it consists of."""

OUTPUTS_KEY = "outputs"
"""In the recipe: a list of the folder's other files, each with ``path`` (relative), ``bytes``, and ``sha256``
or, for a large one, ``sampled_sha256`` (:func:`_fingerprint`)."""

_WHOLE_BYTES = 64 << 20
"""Files up to this size are hashed as a whole; of larger ones, samples are."""

_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10
_RECIPE_LIMIT = 64 << 20


@contextlib.contextmanager
def new_folder(output: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give a new empty folder beside ``output``; at the end of the block it is at ``output``.

    The modes of the folder and of the files that are replaced are kept. If the block raises, ``output`` is as
    it was.

    Parameters
    ----------
    overwrite:
        Whether a folder that paramerge wrote may be replaced (:func:`strangers`); else only an empty one.

    Raises
    ------
    OutputError
        The folder cannot be written, or another one has appeared there.
    """
    target = Path(os.path.realpath(output))
    placed = False
    try:
        restore_folder(target)
        clear_stale(target.parent)
        with _stage_of(target) as stage:
            yield stage
            _keep_modes(stage, target)
            _sync_tree(stage)
            note_placing(target, stage.stat())
            _swap(stage, target, overwrite)
            placed = True
        sync_folder(target.parent)
    except OSError as error:
        raise (unconfirmed(error, target) if placed else output_error(error, target)) from error


def write_recipe(folder: Path, recipe: Mapping[str, object]) -> None:
    """Write ``recipe`` into ``folder``, with the list of all files that are there by now."""
    files = [{"path": name, **_fingerprint(folder / name)} for name in sorted(_files(folder))]
    write_bytes(folder / RECIPE_FILE, recipe_text({**recipe, OUTPUTS_KEY: files}), is_output=False)


def recipe_text(recipe: Mapping[str, object]) -> bytes:
    """The one form in which a recipe is written into a folder."""
    return (json.dumps(recipe, indent=2, sort_keys=True) + "\n").encode()


def strangers(folder: Path) -> list[str] | None:
    """Files in ``folder`` that its recipe does not list, or not so; None without such a recipe.

    Returns
    -------
    list of str
        Relative names, sorted: files that are not listed or have other content, links, and folders that hold
        nothing that is listed.
    """
    listed = _listed(folder / RECIPE_FILE)
    if listed is None:
        return None
    folders = {str(parent) for name in listed for parent in Path(name).parents}
    found = []
    for root, inner, names in _walk(folder):
        for name in (*inner, *names):
            path = Path(root, name)
            relative = path.relative_to(folder)
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                known = str(relative) in folders
            elif str(relative) == RECIPE_FILE:
                known = True
            else:
                entry = listed.get(relative.as_posix())
                known = stat.S_ISREG(mode) and entry is not None and entry == _fingerprint(path)
            if not known:
                found.append(relative.as_posix())
    return sorted(found)


def missing_files(folder: Path) -> list[str]:
    """The files that the recipe in ``folder`` lists and that are not there, sorted."""
    return sorted(name for name in _listed(folder / RECIPE_FILE) or {} if not (folder / name).is_file())


def restore_folder(target: Path) -> None:
    """Put back a folder that stepped aside for one that never came, since its process was killed."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for name in os.listdir(target.parent):  # noqa: PTH208
            found = STAGE.fullmatch(name)
            if found is None or found["state"] != "old" or found["name"] != stage_name(target):
                continue
            aside = target.with_name(name)
            stage = aside.with_suffix(".partial")
            if os.path.lexists(stage):
                lock = lock_stage(stage)
                if lock is None:
                    continue  # its process is alive
                os.close(lock)
                if os.path.lexists(target):
                    continue  # somebody made another one meanwhile: nothing here is ours to remove
            if os.path.lexists(target):
                _remove_tree(aside)
            else:
                aside.rename(target)


@contextlib.contextmanager
def _stage_of(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, locked; the folder that has its name at the end is removed."""
    mode = stat.S_IMODE(target.stat().st_mode) & 0o777 if target.is_dir() else 0o777
    while True:
        stage = stage_path_of(target)
        stage.mkdir(mode | 0o700)
        lock = lock_stage(stage, wait=True)
        if lock is not None or stage.is_dir():
            break  # there without a lock: this file system has none
    try:
        yield stage
    finally:
        _remove_tree(stage)
        if lock is not None:
            os.close(lock)


def _keep_modes(stage: Path, target: Path) -> None:
    """Give the new files and folders the modes of those that they replace."""
    if not target.is_dir():
        return
    for root, _, names in _walk(stage, topdown=False):
        for path in (*(Path(root, name) for name in names), Path(root)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.chmod(stat.S_IMODE((target / path.relative_to(stage)).lstat().st_mode))


def _sync_tree(stage: Path) -> None:
    for root, _, names in _walk(stage, topdown=False):
        for name in names:
            sync_file(Path(root, name))
        sync_folder(Path(root))


def _swap(stage: Path, target: Path, overwrite: bool) -> None:
    """Put ``stage`` at ``target``; the old one goes to the stage's name, to be removed."""
    if not target.exists() or not any(target.iterdir()):
        move_folder(stage, target)  # never over a file, or over a folder that is not empty
        return
    if not overwrite or strangers(target) != []:
        raise OutputError(
            "other files appeared at the output meanwhile", where=target, hint="give another name"
        )
    if exchange_names(stage, target):
        return
    aside = stage.with_suffix(".old")
    try:
        target.rename(aside)
        stage.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    _remove_tree(aside)


def _remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, also where it may not be written."""
    for root, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            Path(root).chmod(0o700)
    for _ in range(2):
        with contextlib.suppress(
            OSError
        ):  # where a close fails, Python closes again, and raises all the same
            shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        close_kept()  # a folder cannot be listed without a descriptor


def _walk(folder: Path, *, topdown: bool = True) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk``, which by itself takes a folder that cannot be listed for an empty one."""

    def refuse(error: OSError) -> None:
        raise error

    return os.walk(folder, topdown, refuse)


def _files(folder: Path) -> list[str]:
    """All files in ``folder``, relative, but for the recipe."""
    paths = [Path(root, name).relative_to(folder) for root, _, names in _walk(folder) for name in names]
    return [path.as_posix() for path in paths if path != Path(RECIPE_FILE)]


def _fingerprint(path: Path) -> dict[str, object]:
    """Size and SHA-256 of a file; of a large one, of its beginning, its end and blocks between.

    A hash of all of a checkpoint would cost as much time as baking it; who edits one changes its header, its
    size or most of its tensors, which the samples see.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size <= _WHOLE_BYTES:
            return {"bytes": size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
        digest = hashlib.sha256()
        for place in range(_SAMPLES):
            stream.seek((size - _SAMPLE_BYTES) * place // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
        return {"bytes": size, "sampled_sha256": digest.hexdigest()}


def _listed(recipe: Path) -> dict[str, dict[str, object]] | None:
    """The files that a recipe lists, without their paths; None where there is no such recipe."""
    try:
        content = read_object(recipe, limit=_RECIPE_LIMIT)
        return {
            str(entry["path"]): {key: value for key, value in entry.items() if key != "path"}
            for entry in content[OUTPUTS_KEY]
        }
    except UnreadableError:
        raise  # it may be there and list everything
    except (ParamergeError, TypeError, KeyError, AttributeError):
        return None
