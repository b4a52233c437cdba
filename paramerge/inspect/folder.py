"""The adapters and checkpoints in a folder, a line each, known from their headers alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramerge.checkpoints.diffusers_folder import is_model_folder
from paramerge.errors import ParamergeError
from paramerge.formats.opening import is_adapter_folder
from paramerge.formats.provenance import possible_architectures
from paramerge.inspect.inspection import (
    CheckpointFacts,
    ForeignFacts,
    OpenedAdapter,
    UnknownFacts,
    open_any,
)
from paramerge.inspect.training_notes import training_notes
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.system_faults import reading

DEPTH = 8
"""Folders within folders that are looked into."""


@dataclass(frozen=True)
class Entry:
    """A file or folder of models.

    Attributes
    ----------
    path:
        As it is reached: the folder that was given, and the place in it.
    what:
        ``adapter``, ``checkpoint``, ``unknown`` (neither), or ``damaged`` (it cannot be read).
    family:
        Of an adapter, the families that it holds; of a checkpoint, its layout.
    architecture:
        The model, or the models that it can be for; empty where neither is known.
    layers:
        Layers that the adapter changes, or that adapters reach in the checkpoint.
    ranks:
        The least and the largest number that its families count; None for a checkpoint.
    size:
        Bytes.
    notes:
        Title, trigger words and the like, by :func:`training_notes`.
    problem:
        The refusal of what cannot be baked; empty for all else.
    """

    path: Path
    what: str
    family: str = ""
    dialect: str = ""
    architecture: str = ""
    layers: int = 0
    ranks: tuple[int, int] | None = None
    size: int = 0
    notes: Mapping[str, str] | None = None
    problem: str = ""


SORTS: dict[str, Callable[[Entry], Any]] = {
    "name": lambda entry: str(entry.path).casefold(),
    "size": lambda entry: -entry.size,
    "rank": lambda entry: -max(entry.ranks or (0,)),
    "layers": lambda entry: -entry.layers,
    "family": lambda entry: (entry.what, entry.family),
    "model": lambda entry: (entry.architecture == "", entry.architecture),
}
"""The orders of a listing; what is equal stays in the order of the names."""


def is_collection(path: Path) -> bool:
    """Whether ``path`` is a folder that is itself neither an adapter nor a model."""
    with reading(path):
        return path.is_dir() and not is_adapter_folder(path) and not is_model_folder(path)


def inspect_folder(
    folder: str | os.PathLike[str], sort: str = "name", interpretation: Interpretation = BY_TRAINER
) -> tuple[Entry, ...]:
    """Look at every safetensors file, adapter folder and model folder in ``folder`` and the folders in it.

    ``sort`` is one of :data:`SORTS`. Links to folders are not followed. What cannot be read becomes an entry
    with its problem.

    Raises
    ------
    FileFormatError
        The folder itself cannot be read.
    """
    entries = sorted((_entry(path, interpretation) for path in models_in(Path(folder))), key=SORTS["name"])
    return tuple(sorted(entries, key=SORTS[sort]))


def models_in(folder: Path, depth: int = 0) -> Iterator[Path]:
    """The safetensors files, adapter folders and model folders in ``folder``, ``depth`` folders deep.

    Raises
    ------
    FileFormatError
        The folder cannot be read.
    """
    with reading(folder):
        inside = sorted(folder.iterdir())
    for path in inside:
        if path.name.startswith("."):
            continue
        try:
            is_folder = path.is_dir()
        except OSError:  # nobody may look at it: an entry that says so
            yield path
            continue
        if path.suffix == ".safetensors" and not is_folder:
            yield path
        elif is_folder and not path.is_symlink() and depth < DEPTH:
            try:
                whole = not is_collection(path)
                nested = [path] if whole else list(models_in(path, depth + 1))
            except ParamergeError:  # it may not be entered: an entry that says so
                nested = [path]
            yield from nested


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _entry(path: Path, interpretation: Interpretation) -> Entry:
    try:
        opened = open_any(path, interpretation)
    except ParamergeError as error:
        size = _size(path)
        return Entry(path, "damaged", size=size, problem=error.what)
    if isinstance(opened, OpenedAdapter):
        return _adapter(path, opened)
    if isinstance(opened, CheckpointFacts):
        return _checkpoint(path, opened)
    if isinstance(opened, ForeignFacts):
        return Entry(
            path,
            "adapter",
            ", ".join(opened.families),
            size=opened.size,
            layers=sum(opened.families.values()),
            notes=dict(training_notes(opened.metadata)),
            problem=opened.reason,
        )
    return _unknown(path, opened)


def _adapter(path: Path, opened: OpenedAdapter) -> Entry:
    adapter = opened.adapter
    ranks = [module.rank for module in adapter.modules.values()]
    known = [adapter.architecture] if adapter.architecture else possible_architectures(adapter.modules)
    return Entry(
        path,
        "adapter",
        ", ".join(adapter.families),
        adapter.dialect,
        " or ".join(known),
        len(adapter.modules),
        (min(ranks), max(ranks)),
        opened.size,
        dict(training_notes(adapter.metadata)),
        "; ".join(f"{len(left.keys)} keys are not applied" for left in adapter.leftovers),
    )


def _checkpoint(path: Path, facts: CheckpointFacts) -> Entry:
    dtypes: Counter[str] = Counter()
    for part in facts.components:
        dtypes.update(part.dtypes)
    return Entry(
        path,
        "checkpoint",
        facts.base.layout,
        architecture=facts.base.architecture,
        layers=sum(part.layers for part in facts.components),
        size=facts.size,
        notes={"dtypes": ", ".join(dtypes), **dict(training_notes(facts.metadata))},
    )


def _unknown(path: Path, facts: UnknownFacts) -> Entry:
    return Entry(path, "unknown", size=facts.size, problem=facts.reason)
