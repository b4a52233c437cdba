"""An output as it is on the disk, and what its own hashes say of it: no input is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from paramerge.bake.tasks import WORKERS
from paramerge.errors import CheckpointError, FileFormatError, ParamergeError, UnreadableError, UsageError
from paramerge.files.content_hash import HEADER_KEY, TensorDigests, header_sha256
from paramerge.files.header import Header, TensorInfo, read_header
from paramerge.files.recipe_text import RECIPE_KEY
from paramerge.files.source import Source
from paramerge.files.staging import OUTPUTS_KEY, RECIPE_FILE, missing_files, recipe_text, strangers
from paramerge.regular_files import read_whole
from paramerge.replay.reading import LONGEST, content_of

_BLOCK = 1 << 20
_ENDING = ".safetensors"


@dataclass(frozen=True)
class Output:
    """A file or folder that is to be verified.

    Attributes
    ----------
    headers:
        The header of every file of weights that can be read, by its place in the folder; of a file ``.``.
    recipe:
        The recipe, not checked; None where there is none.
    faults:
        All that is not as it was written, a line each.
    """

    path: Path
    headers: Mapping[PurePosixPath, Header]
    recipe: Mapping[str, Any] | None
    faults: tuple[str, ...]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path.is_dir()

    @property
    def header_is_intact(self) -> bool | None:
        """Whether all headers with a hash of their own have that hash; None without any."""
        found = [intact for header in self.headers.values() if (intact := _is_intact(header)) is not None]
        return all(found) if found else None

    def stated_content(self, relative: PurePosixPath) -> str | None:
        """The content hash that the recipe has for a file of weights; None where it has none."""
        content = (self.recipe or {}).get("content")
        if not isinstance(content, dict):
            return None
        if not self.is_folder:
            return str(content.get("sha256"))
        files = content.get("files")
        return next(
            (
                str(entry.get("sha256"))
                for entry in (files if isinstance(files, list) else [])
                if isinstance(entry, dict) and entry.get("name") == str(relative)
            ),
            None,
        )


def read_output(path: Path) -> Output:
    """Read the headers and the recipe of an output; what is broken in them is among its faults.

    Raises
    ------
    CheckpointError
        There is nothing at ``path``.
    UsageError
        It is a recipe, not an output.
    FileFormatError
        It is a pickle or the like, which is never opened, or cannot be read at all.
    """
    if not path.exists():
        raise CheckpointError(
            "no such file or folder", where=path, expected="a file or folder that paramerge bake wrote"
        )
    if path.is_dir():
        return _read_folder(path)
    if path.suffix in (".json", ".toml"):
        raise UsageError(
            "this is a recipe, and not what was made by it",
            where=path,
            expected="a file or folder that paramerge bake, or paramerge merge of checkpoints, wrote",
        )
    header, faults = _read_header(path, path.name)
    if header is None:
        return Output(path, {}, None, tuple(faults))
    recipe, unreadable = _read_recipe(path, is_there=RECIPE_KEY in header.metadata)
    return Output(path, {PurePosixPath(): header}, recipe, (*_header_faults(path.name, header), *unreadable))


def content_hash(header: Header, report: Callable[[int], None]) -> str:
    """The content hash (hex) of a file, by several threads; ``report`` is called with bytes that are done."""
    digests = TensorDigests()

    def add(info: TensorInfo) -> None:
        view = memoryview(bytearray(min(_BLOCK, info.nbytes)))
        for start in range(info.start, info.stop, _BLOCK):
            block = view[: min(_BLOCK, info.stop - start)]
            header.source.read_into(block, start)
            digests.update(info.key, block)
            report(len(block))

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="verify") as pool:
        for _ in pool.map(add, header.tensors.values()):
            pass
    return digests.content_sha256((t.key, t.dtype, t.shape) for t in header.tensors.values())


def whole_sha256(source: Source, report: Callable[[int], None]) -> str:
    """The SHA-256 (hex) of all bytes of a file, read now."""
    digest = hashlib.sha256()
    for block in source.blocks():
        digest.update(block)
        report(len(block))
    return digest.hexdigest()


def _read_folder(path: Path) -> Output:
    headers, faults = {}, []
    for file in sorted(path.rglob(f"*{_ENDING}")):
        relative = PurePosixPath(file.relative_to(path).as_posix())
        header, fault = _read_header(file, str(relative))
        faults += fault
        if header is not None:
            headers[relative] = header
            faults += _header_faults(str(relative), header)
    recipe, unreadable = _read_recipe(path, is_there=(path / RECIPE_FILE).is_file())
    faults += [*unreadable, *(f"{name} is missing" for name in missing_files(path))]
    faults += [f"{name} is not as it was written, or was added" for name in strangers(path) or ()]
    if recipe is not None:
        faults += _recipe_faults(path, recipe, headers)
    return Output(path, headers, recipe, tuple(dict.fromkeys(faults)))


def _read_header(path: Path, name: str) -> tuple[Header | None, list[str]]:
    try:
        return read_header(path), []
    except UnreadableError:
        raise
    except FileFormatError as error:
        if path.suffix != _ENDING:
            raise
        return None, [f"{name} cannot be read: {error.what}"]


def _read_recipe(path: Path, *, is_there: bool) -> tuple[Mapping[str, Any] | None, list[str]]:
    """The recipe; where it cannot be read None, and the reason."""
    try:
        return (content_of(path) if is_there else None), []
    except UnreadableError:
        raise
    except ParamergeError as error:
        return None, [f"{error.what}: {error.found or error.where}"]


def _is_intact(header: Header) -> bool | None:
    stated = header.metadata.get(HEADER_KEY)
    if stated is None:
        return None
    return header_sha256(header.source.read(0, header.data_start), stated) == stated


def _header_faults(name: str, header: Header) -> Iterator[str]:
    if _is_intact(header) is False:
        yield f"the header of {name} is not as it was written"


def _recipe_faults(
    folder: Path, recipe: Mapping[str, Any], headers: Mapping[PurePosixPath, Header]
) -> Iterator[str]:
    """A folder's recipe is in the headers, too, and its text has one form."""
    if read_whole(folder / RECIPE_FILE, limit=LONGEST) != recipe_text(recipe):
        yield f"{RECIPE_FILE} is not as it was written"
    own = {key: value for key, value in recipe.items() if key != OUTPUTS_KEY}
    texts = [header.metadata[RECIPE_KEY] for header in headers.values() if RECIPE_KEY in header.metadata]
    if texts and json.dumps(own, separators=(",", ":"), sort_keys=True) not in texts:
        yield f"{RECIPE_FILE} and the recipe in the files of weights are not the same"
