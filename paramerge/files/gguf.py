"""The header of a GGUF file, as that of a safetensors file: tensors by key, with their places.

The ``gguf`` package reads it; a quantised tensor has the name of its GGML type (``Q4_K``) as its dtype.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from paramerge.errors import CheckpointError, FileFormatError, ParamergeError
from paramerge.files.dtypes import BITS
from paramerge.files.header import Header, TensorInfo
from paramerge.files.source import Source

_MAGIC = b"GGUF"
_SHAPE = "comfy.gguf.orig_shape."
"""The key of a tensor's own shape, where GGML has it flattened."""

_LANGUAGE_MODEL = re.compile(r"blk\.\d+\.")
"""Keys of llama.cpp's own names for the layers of language models."""


def is_gguf(path: Path) -> bool:
    """Whether the file at ``path`` begins as GGUF files do."""
    try:
        source = Source.open(path)
        return source.read(0, min(len(_MAGIC), source.size)) == _MAGIC
    except ParamergeError:  # said by whoever opens it
        return False


def read_gguf(path: Path) -> Header:
    """Read the header of the GGUF file at ``path``; no tensor is read.

    Raises
    ------
    CheckpointError
        It is of a language model, or the ``gguf`` package is not installed.
    FileFormatError
        It is damaged.
    """
    source = Source.open(path)
    reader = _reader(source)
    tensors: dict[str, TensorInfo] = {}
    for tensor in reader.tensors:
        info = _info(tensor, reader)
        if info.stop > source.size:
            raise FileFormatError(
                "a tensor of this GGUF file reaches past its end",
                where=f"{path}: {info.key}",
                expected=f"at most {source.size} bytes",
                found=f"byte {info.stop}",
                hint="the file is truncated: download it again",
            )
        tensors[info.key] = info
    source.check_unchanged()
    if not tensors:
        raise FileFormatError("this GGUF file has no tensors", where=path, hint="download it again")
    if any(_LANGUAGE_MODEL.match(key) for key in tensors):
        raise CheckpointError(
            "this GGUF file is of a language model, with the names and the order of rows of llama.cpp",
            where=path,
            expected="a diffusion model under its own names",
            found=next(key for key in tensors if _LANGUAGE_MODEL.match(key)),
            hint="take the safetensors model of the same name",
        )
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].start))
    return Header(source, tensors, {}, int(reader.data_offset), source.size)


def _reader(source: Source) -> Any:
    try:
        import gguf
    except ImportError:
        raise CheckpointError(
            "reading a GGUF file needs a package that is not installed",
            where=source.path,
            expected="gguf",
            hint="pip install gguf",
        ) from None
    try:
        return gguf.GGUFReader(source.path)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, AttributeError) as error:
        raise FileFormatError(
            "this GGUF file cannot be read",
            where=source.path,
            found=f"{type(error).__name__}: {error}",
            hint="the file is truncated or damaged: download it again",
        ) from error


def _info(tensor: Any, reader: Any) -> TensorInfo:
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    stated = reader.fields.get(_SHAPE + tensor.name)
    if stated is not None:
        own = tuple(int(stated.parts[part][0]) for part in stated.data)
        shape = own if math.prod(own) == math.prod(shape) else shape
    start = int(tensor.data_offset)
    return TensorInfo(tensor.name, tensor.tensor_type.name, shape, start, start + int(tensor.n_bytes))


def is_ggml(dtype: str) -> bool:
    """Whether a dtype is a GGML type that no safetensors file has."""
    return dtype not in BITS
