"""Finding the base that an adapter was made for, by its hash, among the models the user has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from paramerge.adapters import Adapter
from paramerge.checkpoints.component_folder import is_shard
from paramerge.errors import UsageError
from paramerge.files.finder import MODELS_VARIABLE, Finder, model_folders, readable
from paramerge.files.hashing import legacy_hash
from paramerge.regular_files import is_there
from paramerge.wording import option

_SHA256_LENGTH = 64
_SMALLEST_BASE = 1 << 20
"""Files below this are no checkpoints; they are not hashed."""


def named_hashes(adapters: Iterable[Adapter]) -> list[str]:
    """Every SHA-256 (lower-case hex) that the adapters give for the base that they were made for."""
    hashes = [hash_.lower() for adapter in adapters for hash_ in adapter.base_hashes]
    return [hash_ for hash_ in dict.fromkeys(hashes) if len(hash_) == _SHA256_LENGTH]


def find_base(adapters: Sequence[Adapter], note: Callable[[str], None] = lambda _: None) -> Path:
    """The checkpoint that the first adapter which names one was made for.

    Looked for in the huggingface_hub cache (whose files are named by their SHA-256) and in the folders of
    ``PARAMERGE_MODELS``: known hashes first, then the short hashes of older trainers as a filter, and only
    then by hashing. A file inside a diffusers folder counts as the folder. ``note`` is called with a line
    before anything that takes long.

    A known hash and a name are believed here, and may be out of date: give :func:`named_hashes` to
    :func:`paramerge.bake.bake.bake`, which hashes the base that it reads.

    Raises
    ------
    UsageError
        No adapter names its base, or no file has the hash.
    """
    wanted = [hash_ for adapter in adapters for hash_ in adapter.base_hashes]
    exact = named_hashes(adapters)
    short = [hash_.lower() for hash_ in wanted if len(hash_) < _SHA256_LENGTH]
    if not wanted:
        raise UsageError(
            "no base was given, and no adapter names the one it was made for",
            where=", ".join(adapter.path.name for adapter in adapters),
            hint=f"give it: {option('base', 'model.safetensors')}",
        )
    finder = Finder(tuple(model_folders()), smallest=_SMALLEST_BASE, note=note, what="the base")
    found = next(finder.find(exact), None) if exact else _by_short_hash(finder, short)
    if found is not None:
        return _as_base(found)
    candidates = [path for path, size in finder.candidates if size >= _SMALLEST_BASE]
    folders = os.environ.get(MODELS_VARIABLE)
    raise UsageError(
        "no base was given, and the one the adapters were made for was not found",
        where=f"{MODELS_VARIABLE}={folders}" if folders else f"{MODELS_VARIABLE} is not set",
        expected="a checkpoint with the hash " + (exact or short)[0],
        found=f"{len(candidates)} checkpoints there, none with that hash",
        hint=f"give it with {option('base')}, or put its folder into {MODELS_VARIABLE} "
        f"(separated by '{os.pathsep}')",
    )


def _by_short_hash(finder: Finder, wanted: Sequence[str]) -> Path | None:
    """The one file with a short hash; two of them decide nothing."""
    found = [
        path
        for path, size in finder.candidates
        if size >= finder.smallest and readable(path) and legacy_hash(path) in wanted
    ]
    return found[0] if len(found) == 1 else None


def _as_base(path: Path) -> Path:
    """The diffusers folder of a component's file, the folder of a shard, or the file itself."""
    folder = path.parent.parent
    if is_there(folder / "model_index.json"):
        return folder
    return path.parent if is_shard(path) and is_there(path.parent / "config.json") else path
