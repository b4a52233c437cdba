"""The safetensors header: read, checked and kept as data. No tensor is read here.

A safetensors file is 8 bytes (little-endian length ``n`` of the header), ``n`` bytes of JSON, then the
tensors' bytes. The header is trusted for nothing: lengths, offsets, shapes and dtypes are checked
against each other and against the size of the file before anything else looks at them.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as repr_of
from typing import NamedTuple

from paramerge.errors import FileFormatError, OutputError, shortened
from paramerge.files.dtypes import BITS
from paramerge.files.file_kinds import START_BYTES, refuse_other_kind
from paramerge.files.source import Source
from paramerge.strict_json import MAX_DEPTH, check_bounds, no_collection, parse, unique

__all__ = ["MAX_HEADER_BYTES", "Header", "TensorInfo", "encode_header", "read_header"]

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library itself sets on a header."""

PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: ``start`` and ``stop`` are absolute byte offsets in the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header: tensors by key in the order of their bytes, and the free metadata."""

    source: Source
    """The open file, from which tensors are read too."""
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    data_start: int
    file_size: int

    @property
    def path(self) -> Path:
        """The file, as it was named."""
        return self.source.path


def read_header(path: str | os.PathLike[str] | Source) -> Header:
    """Read and check the header of the safetensors file at ``path``, or of one that is open.

    Raises
    ------
    FileFormatError
        The file is missing, is a pickle, is truncated, or its header contradicts itself or the file.
    """
    source = path if isinstance(path, Source) else _open(Path(path))
    path, file_size = source.path, source.size
    raw = _read_json_bytes(source)
    data_start = 8 + len(raw)
    entries = _parse_json(path, raw)
    metadata = _check_metadata(path, entries.pop("__metadata__", {}))
    with no_collection():
        infos = [_check_tensor(path, key, entry, data_start, file_size) for key, entry in entries.items()]
        infos.sort(key=lambda info: (info.start, info.stop))
    _check_contiguous(path, infos, data_start, file_size)
    return Header(source, {info.key: info for info in infos}, metadata, data_start, file_size)


def _open(path: Path) -> Source:
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise FileFormatError(
            f"{path.suffix} files are never opened: loading a pickle can run any code in it",
            where=path,
            expected="a .safetensors file",
            hint="convert it with a tool you trust, in a sandbox, and give the .safetensors file",
        )
    return Source.open(path)


def encode_header(
    tensors: list[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str], align: int = 8
) -> bytes:
    """Encode a header (with its length prefix) for ``(key, dtype, shape, nbytes)`` laid out in that order.

    The JSON is padded with spaces so that the data starts at a multiple of ``align`` bytes.

    Raises
    ------
    OutputError
        It is larger than :data:`MAX_HEADER_BYTES`.
    """
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(metadata)
    offset = 0
    for key, dtype, shape, nbytes in tensors:
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % align)
    if len(text) > MAX_HEADER_BYTES:
        raise OutputError(
            "the output's header would be larger than any reader allows",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            found=f"{len(text)} bytes for {len(tensors)} tensors and {len(metadata)} metadata",
            hint="the metadata of the inputs are kept: look for a large one with paramerge inspect",
        )
    return struct.pack("<Q", len(text)) + text


def _read_json_bytes(source: Source) -> bytes:
    path, file_size = source.path, source.size
    prefix = source.read(0, min(8, file_size))
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else file_size
    if length == 0 or length > min(file_size - 8, MAX_HEADER_BYTES):
        refuse_other_kind(path, source.read(0, min(START_BYTES, file_size)))
    if len(prefix) < 8:
        raise FileFormatError(
            "the file is too short to be safetensors" if prefix else "the file is empty",
            where=path,
            expected="at least 8 bytes",
            found=f"{len(prefix)} bytes",
            hint="download it again",
        )
    if length > file_size - 8:
        raise FileFormatError(
            "the header's length points past the end of the file",
            where=path,
            expected=f"at most {file_size - 8} bytes",
            found=f"{length} bytes",
            hint="the file is truncated or not safetensors: download it again",
        )
    if length > MAX_HEADER_BYTES:
        raise FileFormatError(
            "the header is larger than safetensors allows",
            where=path,
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            found=f"{length} bytes",
        )
    return source.read(8, 8 + length)


class _Entry(NamedTuple):
    """A tensor as the header has it; the three values are not checked yet."""

    dtype: object
    shape: object
    data_offsets: object


_FIELDS = frozenset(_Entry._fields)
_LARGEST_SIZE = 2**64 - 1
"""Sizes and offsets are unsigned and of 64 bits, and so are the products of sizes."""


def _make_object(pairs: list[tuple[str, object]]) -> dict[str, object] | _Entry:
    """The object of ``pairs``; a tensor's entry becomes three values at once, which takes half the memory."""
    entries = unique(pairs)
    if entries.keys() == _FIELDS and isinstance(entries["shape"], list):
        return _Entry(**entries)
    return entries


def _parse_json(path: Path, raw: bytes) -> dict[str, object]:
    try:
        entries = parse(raw, _make_object)
        if not isinstance(entries, dict):
            raise FileFormatError(
                "the header is not a JSON object", where=path, found=shortened(repr_of(entries))
            )
        for entry in entries.values():
            if not isinstance(entry, _Entry):
                check_bounds(entry, MAX_DEPTH - 1)
    except ValueError as error:
        raise FileFormatError("the header is not valid JSON", where=path, found=error) from None
    return entries


def _check_metadata(path: Path, metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileFormatError(
            "the metadata of the header is not a map from text to text", where=path, expected="{str: str}"
        )
    return metadata


def _check_tensor(path: Path, key: str, entry: object, data_start: int, file_size: int) -> TensorInfo:
    fields = entry if type(entry) is _Entry else _fields(path, key, entry)
    dtype, shape, offsets = fields
    if isinstance(dtype, dict) and list(dtype.values()) == [None]:
        dtype = next(iter(dtype))  # {"F32": null}, another spelling of "F32" to serde
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _refusal(path, key, "unknown dtype", expected=", ".join(BITS), found=repr_of(dtype))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _refusal(path, key, "the offsets are not a pair of positions", found=repr_of(offsets))
    begin, end = offsets
    if not isinstance(shape, list) or (bits := _bits(shape, BITS[dtype])) is None:
        raise _refusal(
            path,
            key,
            "the shape is not a list of sizes",
            expected="sizes whose product is one of 64 bits",
            found=repr_of(shape),
        )
    if bits % 8 or end - begin != bits // 8:
        raise _refusal(
            path,
            key,
            "the offsets do not agree with dtype and shape",
            expected=f"{bits / 8:g} bytes for {dtype} {repr_of(shape)}",
            found=f"{end - begin} bytes",
        )
    if data_start + end > file_size:
        raise _refusal(
            path,
            key,
            "the tensor reaches past the end of the file",
            expected=f"at most byte {file_size}",
            found=f"byte {data_start + end}",
            hint="the file is truncated: download it again",
        )
    return TensorInfo(key, sys.intern(dtype), tuple(shape), data_start + begin, data_start + end)


def _refusal(path: Path, key: str, what: str, **details: str) -> FileFormatError:
    return FileFormatError(what, where=f"{path}: {shortened(key)}", **details)


def _fields(path: Path, key: str, entry: object) -> _Entry:
    """The three values of a tensor's entry; other fields are ignored, and a list has them in this order."""
    if isinstance(entry, dict) and entry.keys() >= _FIELDS:
        return _Entry(*(entry[name] for name in _Entry._fields))
    if isinstance(entry, list) and len(entry) == len(_FIELDS):
        return _Entry(*entry)
    raise _refusal(
        path,
        key,
        "the header's entry is not a tensor's",
        expected=f"an object with {', '.join(_Entry._fields)}",
        found=repr_of(entry),
    )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_SIZE


def _bits(shape: list[object], bits: int) -> int | None:
    """The bits of a tensor; None where a size, or a product in the order of the sizes, does not fit 64 bits.

    So a shape is refused even if a later size is zero, as the safetensors library does.
    """
    count = 1
    for size in shape:  # up to fifty million: a loop without calls
        if type(size) is not int or not 0 <= size <= _LARGEST_SIZE:
            return None
        count *= size
        if count > _LARGEST_SIZE:
            return None
    count *= bits
    return count if count <= _LARGEST_SIZE else None


def _check_contiguous(path: Path, infos: list[TensorInfo], data_start: int, file_size: int) -> None:
    position = data_start
    for info in infos:
        if info.start != position:
            problem = "overlaps the one before it" if info.start < position else "leaves a gap before it"
            raise FileFormatError(
                f"the tensor {problem}",
                where=f"{path}: {shortened(info.key)}",
                expected=f"start at byte {position}",
                found=f"byte {info.start}",
                hint="the header is damaged or made to deceive: get the file from its source again",
            )
        position = info.stop
    if position != file_size:
        raise FileFormatError(
            "bytes after the last tensor that the header does not speak of",
            where=path,
            expected=f"{position} bytes",
            found=f"{file_size} bytes",
        )
