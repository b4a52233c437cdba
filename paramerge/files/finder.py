"""Files found by their SHA-256 among the user's models, whatever they are called there.

Hashes that are known come first; then sizes, where they are known, leave few candidates, and only those are
hashed. A known hash is believed here as everywhere (:mod:`paramerge.files.hashing`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

from paramerge.errors import ParamergeError, UnreadableError, UsageError
from paramerge.files.hashing import cached_sha256, source_sha256
from paramerge.files.header import read_header
from paramerge.files.source import Source
from paramerge.system_faults import meaning
from paramerge.wording import option

MODELS_VARIABLE = "PARAMERGE_MODELS"

_ENDING = ".safetensors"


def model_folders() -> list[Path]:
    """The folders of the environment variable ``PARAMERGE_MODELS`` (separated as in ``PATH``)."""
    return [Path(part).expanduser() for part in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if part]


@dataclass(frozen=True)
class Finder:
    """A search for files by hash.

    Attributes
    ----------
    folders:
        Searched with all folders in them. One that is missing is an error.
    near:
        Folders that may hold anything, such as that of a file: searched two folders deep, by size alone.
    smallest:
        Bytes below which a file of unknown size is not looked at.
    note:
        Called with a line before anything that takes long.
    what:
        The thing that is looked for, in that line.
    """

    folders: tuple[Path, ...]
    near: tuple[Path, ...] = ()
    smallest: int = 0
    note: Callable[[str], None] = field(default=lambda _: None, repr=False)
    what: str = "an input"
    unread: dict[Path, str] = field(default_factory=dict, repr=False)
    """Files and folders that the system could not read, each with the reason."""

    def find(self, wanted: Collection[str], size: int | None = None) -> Iterator[Path]:
        """Every file that has one of the SHA-256 ``wanted`` (hex), and this size in bytes if it is known.

        Raises
        ------
        UsageError
            A folder does not exist.
        """
        seen: set[Path] = set()
        for path in chain(*map(_in_hub_cache, wanted), self._among(wanted, size)):
            if path not in seen:
                seen.add(path)
                yield path

    def _among(self, wanted: Collection[str], size: int | None) -> Iterator[Path]:
        unknown = []
        for path, found in self.candidates if size is None else (*self.candidates, *self._nearby):
            if found < self.smallest or size not in (None, found):
                continue
            known = None
            with self._noting(path):
                known = cached_sha256(read_header(path).source)
                if known is None:
                    unknown.append(path)
            if known in wanted:
                yield path
        for path in unknown:
            self.note(f"hashing {path.name} to find {self.what}")
            with self._noting(path):
                known = source_sha256(Source.open(path))
            if known in wanted:
                yield path

    @contextlib.contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Pass by a file that is of another kind, went away, or cannot be read, which is noted."""
        try:
            yield
        except UnreadableError as error:
            self.unread[path] = error.what
        except ParamergeError:
            pass

    def _below(self, folder: Path, depth: int | None = None) -> Iterator[tuple[Path, int]]:
        """The files in a folder with their sizes, and in folders in it, so many deep; links only where there
        is a depth."""
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        except OSError as error:
            self.unread[folder] = meaning(error)[0]
            return
        for entry in found:
            try:
                if entry.is_dir(follow_symlinks=depth is not None):
                    if depth != 0:
                        yield from self._below(Path(entry.path), None if depth is None else depth - 1)
                elif entry.name.endswith(_ENDING) and entry.is_file():
                    yield Path(entry.path), entry.stat().st_size
            except FileNotFoundError:  # a link to nothing
                continue
            except OSError as error:
                self.unread[Path(entry.path)] = meaning(error)[0]

    @cached_property
    def candidates(self) -> tuple[tuple[Path, int], ...]:
        """The files in the folders, with their sizes in bytes."""
        for folder in self.folders:
            if not folder.is_dir():
                named = MODELS_VARIABLE if folder in model_folders() else option("models")
                raise UsageError(
                    "a folder of models does not exist",
                    where=f"{named}: {folder}",
                    hint=f"correct the variable, or give {option('base')}"
                    if named == MODELS_VARIABLE
                    else "give a folder that exists",
                )
        return tuple(found for folder in self.folders for found in self._below(folder))

    @cached_property
    def _nearby(self) -> tuple[tuple[Path, int], ...]:
        return tuple(found for folder in self.near for found in self._below(folder, 2))


def readable(path: Path) -> Source | None:
    """The file, opened, if it is safetensors; else None."""
    try:
        return read_header(path).source
    except ParamergeError:
        return None


def _in_hub_cache(digest: str) -> Iterator[Path]:
    """Files of the Hugging Face cache, whose blobs are named by their SHA-256."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for blob in sorted(Path(HF_HUB_CACHE).glob(f"models--*/blobs/{digest}")):
        for path in sorted((blob.parent.parent / "snapshots").rglob(f"*{_ENDING}")):
            if path.resolve() == blob.resolve():
                yield path
