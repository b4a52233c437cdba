"""The small files beside a model's weights, as libraries read them: from copies that were read in full.

A library takes what the system does not give it (a fault of the disk, no permission) for a file that is not
there, and goes on without: a tokenizer without its settings gives other numbers. It waits for a pipe, and
reads a file of any length. Of copies none of this can happen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paramerge.errors import CheckpointError
from paramerge.files.header import PICKLE_SUFFIXES
from paramerge.regular_files import read_whole
from paramerge.system_faults import reading

_LARGEST = 256 << 20
"""Bytes of one; the largest tokenizers have some 35 million."""

_WEIGHTS = (".safetensors", ".msgpack", ".h5", ".onnx", ".gguf", *PICKLE_SUFFIXES)


@contextmanager
def small_files_of(folder: Path) -> Iterator[Path]:
    """A folder, gone after the block, with copies of the files in ``folder`` that are no weights.

    Raises
    ------
    CheckpointError
        One is no regular file, or too long.
    UnreadableError
        One cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="paramerge-", ignore_cleanup_errors=True) as place:
        with reading(folder):
            paths = sorted(path for path in folder.iterdir() if path.suffix not in _WEIGHTS)
            paths = [path for path in paths if not path.is_dir()]
        for path in paths:
            raw = read_whole(path, what="this file of a model", error=CheckpointError, limit=_LARGEST)
            (Path(place) / path.name).write_bytes(raw)
        yield Path(place)


def tokenizers_of(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """The tokenizers of the pipeline in ``folder``, whose ``model_index.json`` is ``index``, by their names.

    Raises
    ------
    CheckpointError
        A file of one is no regular file, or too long.
    UnreadableError
        A file cannot be read.
    """
    import transformers

    found = {}
    for name, entry in index.items():
        if not name.startswith("tokenizer") or not isinstance(entry, list) or entry[:1] != ["transformers"]:
            continue
        tokenizer = getattr(transformers, str(entry[1]), None) if "Tokenizer" in str(entry[1:]) else None
        if tokenizer is not None and (folder / name).is_dir():
            with small_files_of(folder / name) as copies:
                found[name] = tokenizer.from_pretrained(str(copies), local_files_only=True)
            found[name].name_or_path = str(folder / name)
    return found
