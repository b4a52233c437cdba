"""Files found by their SHA-256 among the user's models, whatever they are called there.

Hashes that are known come first; then sizes, where they are known, leave few candidates, and only those are
hashed. A known hash is believed here as everywhere (:mod:`paramerge.files.hashing`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

from paramerge.errors import FileFormatError, ParamergeError, UsageError
from paramerge.files.hashing import cached_sha256, source_sha256
from paramerge.files.header import read_header
from paramerge.files.source import Source
from paramerge.wording import option

MODELS_VARIABLE = "PARAMERGE_MODELS"

_ENDING = "*.safetensors"


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
            source = readable(path)
            known = None if source is None else cached_sha256(source)
            if known in wanted:
                yield path
            elif source is not None and known is None:
                unknown.append(path)
        for path in unknown:
            self.note(f"hashing {path.name} to find {self.what}")
            with contextlib.suppress(FileFormatError):  # it went away, or cannot be read
                if source_sha256(Source.open(path)) in wanted:
                    yield path

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
        return tuple(_sized(chain(*(sorted(folder.rglob(_ENDING)) for folder in self.folders))))

    @cached_property
    def _nearby(self) -> tuple[tuple[Path, int], ...]:
        depths = (_ENDING, f"*/{_ENDING}", f"*/*/{_ENDING}")
        return tuple(_sized(chain(*(sorted(folder.glob(depth)) for folder in self.near for depth in depths))))


def readable(path: Path) -> Source | None:
    """The file, opened, if it is safetensors; else None."""
    try:
        return read_header(path).source
    except ParamergeError:
        return None


def _sized(paths: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file():
                yield path, path.stat().st_size


def _in_hub_cache(digest: str) -> Iterator[Path]:
    """Files of the Hugging Face cache, whose blobs are named by their SHA-256."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for blob in sorted(Path(HF_HUB_CACHE).glob(f"models--*/blobs/{digest}")):
        for path in sorted((blob.parent.parent / "snapshots").rglob(_ENDING)):
            if path.resolve() == blob.resolve():
                yield path
