"""JSON lines that grow while work is going on, and can be picked up where a crash left them.

Each process appends to a file of its own; a line is written in one piece, and one that a crash cut short is
dropped when the file is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paramerge.errors import FileFormatError, UsageError
from paramerge.files.outputs import check_output_folder
from paramerge.files.writer import append_line, make_folder, write_bytes
from paramerge.regular_files import is_there, read_whole
from paramerge.strict_json import parse

__all__ = ["LARGEST", "Records", "claim_folder", "json_lines"]

LARGEST = 256 << 20
"""Bytes of a file of records; a record has some hundreds."""


class Records:
    """The records of all processes in a folder; this process adds to its own file.

    A record is a JSON object with a key ``task`` that no other record has.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._folder = folder
        self._own = folder / f"{rank:04d}.jsonl"
        make_folder(folder)
        lines = _read(self._own) if is_there(self._own) else b"\n"
        if not lines.endswith(b"\n"):  # the next line must not be glued to one that was cut short
            write_bytes(self._own, lines.rpartition(b"\n")[0] + b"\n")

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record and make it durable.

        Raises
        ------
        OutputError
            The disk is full, and the like.
        """
        append_line(self._own, json_lines([record]))

    def read(self) -> dict[str, dict[str, Any]]:
        """The records of all processes by task, in the order of the tasks' names.

        Raises
        ------
        FileFormatError
            A line that is not the last of its file is damaged.
        """
        found = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            lines = _read(path).split(b"\n")
            for number, line in enumerate(lines, start=1):
                try:
                    record = parse(line) if line else None
                    if record is not None:
                        found[record["task"]] = record
                except (ValueError, KeyError, TypeError) as error:
                    if number == len(lines):
                        continue  # cut short: that task is done again
                    raise FileFormatError(
                        "a record is damaged",
                        where=f"{path}, line {number}",
                        expected="a JSON object with a task",
                        hint="delete the line: its task will be done again",
                    ) from error
        return {task: found[task] for task in sorted(found)}


def _read(path: Path) -> bytes:
    return read_whole(path, what="this file of records", limit=LARGEST)


def json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """The records as the content of a file of JSON lines."""
    return b"".join(
        (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode() for record in records
    )


def claim_folder(folder: Path, settings: Mapping[str, Any], inputs: Iterable[Path] = ()) -> None:
    """Write ``settings`` into ``folder/settings.json``, or check that it holds the same.

    Raises
    ------
    UsageError
        The folder holds work of other settings.
    OutputError
        It holds other files, or is one of ``inputs`` or inside one.
    FileFormatError
        The file is damaged.
    """
    path = folder / "settings.json"
    check_output_folder(folder, inputs, files=() if is_there(path) else None)
    make_folder(folder)
    text = json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if not is_there(path):
        write_bytes(path, text.encode())
        return
    try:
        found = parse(read_whole(path, what="this file of settings"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise FileFormatError(
            "the settings in this folder are damaged", where=path, hint="choose another folder"
        ) from error
    wanted = json.loads(text)
    changed = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
    if changed:
        raise UsageError(
            "this folder holds results of other settings",
            where=folder,
            expected=_listed(found, changed),
            found=_listed(wanted, changed),
            hint="choose another folder, or give the same settings to go on",
        )


def _listed(settings: Mapping[str, Any], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} = {json.dumps(settings.get(key))[:80]}" for key in keys)
