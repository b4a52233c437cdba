"""The folders of pictures of a training: one, or several subjects' as a TOML file lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramerge.errors import UsageError
from paramerge.strict_toml import read_toml
from paramerge.training.config import TrainConfig

__all__ = ["Source", "input_folders", "read_sources", "sources_of"]

_KEYS = {"folder": str, "prompt": str, "repeats": int}


@dataclass(frozen=True)
class Source:
    """A folder of pictures, their text where they have no captions, and how often each comes in a round."""

    folder: Path
    prompt: str
    repeats: int = 1


def sources_of(config: TrainConfig) -> tuple[Source, ...]:
    """The subjects' folders.

    Raises
    ------
    UsageError
        The list of them cannot be read.
    """
    if config.dataset is not None:
        return read_sources(config.dataset)
    if config.instance_folder is None:  # the configuration refuses it
        raise UsageError(
            "settings are missing", where="instance_folder", expected="instance_folder or dataset"
        )
    return (Source(config.instance_folder, config.instance_prompt),)


def input_folders(config: TrainConfig) -> list[Path]:
    """All folders that a training reads pictures from, but those of the class."""
    folders = [source.folder for source in sources_of(config)]
    return folders if config.held_out is None else [*folders, config.held_out]


def read_sources(path: Path) -> tuple[Source, ...]:
    """The ``[[subject]]`` tables of a TOML file: ``folder``, ``prompt`` and ``repeats`` (by default 1).

    Relative folders are relative to the current one, as they are on the command line.

    Raises
    ------
    UsageError
        It is no TOML, has no subject, or entries that are not understood.
    """
    content = read_toml(path, what="this list of subjects", error=UsageError)
    tables = content.get("subject")
    if set(content) - {"subject"} or not isinstance(tables, list) or not tables:
        raise UsageError(
            "this list of subjects has no subject, or something else",
            where=path,
            expected="[[subject]] tables",
            found=", ".join(content) or "nothing",
        )
    return tuple(_source(table, f"{path}, subject {number}") for number, table in enumerate(tables, 1))


def _source(table: Any, where: str) -> Source:
    if not isinstance(table, Mapping) or set(table) - set(_KEYS) or not {"folder", "prompt"} <= set(table):
        raise UsageError(
            "this subject is not understood",
            where=where,
            expected="folder and prompt, and repeats",
            found=", ".join(table) if isinstance(table, Mapping) else type(table).__name__,
        )
    for key, value in table.items():
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise UsageError(f"this subject's {key} is of another type", where=where, found=repr(value))
    repeats = table.get("repeats", 1)
    if repeats < 1:
        raise UsageError(
            "this subject never comes", where=where, expected="repeats of 1 or more", found=repeats
        )
    return Source(Path(table["folder"]), table["prompt"], repeats)
