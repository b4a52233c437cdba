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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as repr_of
from typing import NamedTuple, cast

from paramerge.errors import FileFormatError, OutputError, shortened
from paramerge.files.dtypes import BITS
from paramerge.files.file_kinds import START_BYTES, refuse_other_kind
from paramerge.files.source import Source
from paramerge.strict_json import MAX_DEPTH, check_bounds, no_collection, parse, unique

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library itself sets on a header."""

LONGEST_KEY = 1000
"""Characters of a key that is read as a layer's name. Published files stay below 200; no pattern needs more
than a fraction of a second for so many."""

PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


class TensorInfo(NamedTuple):
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


_Row = tuple[str, tuple[int, ...], int, int]
"""Dtype, shape and the offsets in the data: a tensor as the header says it, without its key."""


class _Tensors(Mapping[str, TensorInfo]):
    """The tensors of a header by key; each is made when it is asked for, as there may be millions."""

    __slots__ = ("_data_start", "_rows")

    def __init__(self, rows: dict[str, _Row], data_start: int) -> None:
        self._rows, self._data_start = rows, data_start

    def __getitem__(self, key: str) -> TensorInfo:
        dtype, shape, begin, end = self._rows[key]
        return TensorInfo(key, dtype, shape, self._data_start + begin, self._data_start + end)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


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
    data_start, text = _read_text(source)
    with no_collection():
        entries = _parse_json(path, text)
        del text  # up to 100 MB, beside objects that are some times as large
        metadata = _check_metadata(path, entries.pop("__metadata__", {}))
        for key, entry in entries.items():  # in place: there may be millions
            entries[key] = _check_tensor(path, key, entry, file_size - data_start)
        rows = _in_order(path, cast("dict[str, _Row]", entries), data_start, file_size)
    return Header(source, _Tensors(rows, data_start), metadata, data_start, file_size)


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
    tensors: list[tuple[str, str, tuple[int, ...], int]],
    metadata: Mapping[str, str],
    align: int = 8,
    length: int = 0,
) -> bytes:
    """Encode a header (with its length prefix) for ``(key, dtype, shape, nbytes)`` laid out in that order.

    The JSON is padded with spaces so that the data starts at a multiple of ``align`` bytes, and not before
    byte ``length``.

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
    text = text.ljust(length - 8)
    text += b" " * (-(8 + len(text)) % align)
    if len(text) > MAX_HEADER_BYTES:
        raise OutputError(
            "the output's header would be larger than any reader allows",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            found=f"{len(text)} bytes for {len(tensors)} tensors and {len(metadata)} metadata",
            hint="the metadata of the inputs are kept: look for a large one with paramerge inspect",
        )
    return struct.pack("<Q", len(text)) + text


def _read_text(source: Source) -> tuple[int, str]:
    """The position of the data, and the header's text."""
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
    try:
        return 8 + length, source.read(8, 8 + length).decode("utf-8")
    except ValueError as error:
        raise FileFormatError("the header is not valid JSON", where=path, found=error) from None


_Entry = tuple[object, object, object, object]
"""Dtype, shape and both offsets as the header has them, not checked yet. JSON has no tuples of its own."""

_NAMES = ("dtype", "shape", "data_offsets")
_FIELDS = frozenset(_NAMES)
_DTYPES = {dtype: dtype for dtype in BITS}
"""Dtypes by name: one object for all tensors of a dtype."""

_NO_PAIR = "the offsets are not a pair of positions"
_LARGEST_SIZE = 2**64 - 1
"""Sizes and offsets are unsigned and of 64 bits, and so are the products of sizes."""


def _make_object(pairs: list[tuple[str, object]]) -> dict[str, object] | _Entry:
    """The object of ``pairs``; a tensor's entry becomes its values at once: a third of the memory."""
    if len(pairs) == 3:
        (first, dtype), (second, shape), (third, offsets) = pairs
        if (first, second, third) == _NAMES:
            return _as_entry(dtype, shape, offsets) or dict(pairs)
    entries = unique(pairs)
    if entries.keys() == _FIELDS:
        return _as_entry(*(entries[name] for name in _NAMES)) or entries
    return entries


def _as_entry(dtype: object, shape: object, offsets: object) -> _Entry | None:
    """The values of an entry whose shape and offsets are lists without lists in them; else None."""
    if type(shape) is list and type(offsets) is list and len(offsets) == 2:
        begin, end = offsets
        known = _DTYPES.get(dtype) if type(dtype) is str else None
        if known and type(begin) is int and type(end) is int:
            return known, tuple(shape) if shape else (), begin, end
    return None


def _parse_json(path: Path, text: str) -> dict[str, object]:
    try:
        entries = parse(text, _make_object)
        if not isinstance(entries, dict):
            raise FileFormatError(
                "the header is not a JSON object", where=path, found=shortened(repr_of(entries))
            )
        for entry in entries.values():
            if type(entry) is not tuple:
                check_bounds(entry, MAX_DEPTH - 1)
    except ValueError as error:
        raise FileFormatError("the header is not valid JSON", where=path, found=error) from None
    return entries


def _check_metadata(path: Path, metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not set(map(type, metadata.values())) <= {str}:
        raise FileFormatError(
            "the metadata of the header is not a map from text to text", where=path, expected="{str: str}"
        )
    return metadata


def _check_tensor(path: Path, key: str, entry: object, room: int) -> _Row:
    """The tensor ``key``, if its ``entry`` agrees with itself and with the ``room`` (bytes) for data."""
    row = entry if type(entry) is tuple else _fields(path, key, entry)
    dtype, shape, begin, end = row
    if type(shape) is not tuple or (bits := _bits(shape, BITS[dtype])) is None:
        raise _refusal(
            path,
            key,
            "the shape is not a list of sizes",
            expected="sizes whose product is one of 64 bits",
            found=repr_of(list(shape) if type(shape) is tuple else shape),
        )
    if not 0 <= begin <= _LARGEST_SIZE or not 0 <= end <= _LARGEST_SIZE:
        raise _refusal(path, key, _NO_PAIR, found=repr_of([begin, end]))
    if bits % 8 or end - begin != bits // 8:
        raise _refusal(
            path,
            key,
            "the offsets do not agree with dtype and shape",
            expected=f"{bits / 8:g} bytes for {dtype} {repr_of(list(shape))}",
            found=f"{end - begin} bytes",
        )
    if end > room:
        raise _refusal(
            path,
            key,
            "the tensor reaches past the end of the file",
            expected=f"at most byte {room} of the data",
            found=f"byte {end}",
            hint="the file is truncated: download it again",
        )
    return cast("_Row", row)


def _refusal(path: Path, key: str, what: str, **details: str) -> FileFormatError:
    return FileFormatError(what, where=f"{path}: {shortened(key)}", **details)


def _fields(path: Path, key: str, entry: object) -> tuple[str, object, int, int]:
    """The values of an unusual entry; other fields are ignored, and a list has the values in this order."""
    if isinstance(entry, dict) and entry.keys() >= _FIELDS:
        dtype, shape, offsets = (entry[name] for name in _NAMES)
    elif isinstance(entry, list) and len(entry) == len(_FIELDS):
        dtype, shape, offsets = entry
    else:
        raise _refusal(
            path,
            key,
            "the header's entry is not a tensor's",
            expected=f"an object with {', '.join(_NAMES)}",
            found=repr_of(entry),
        )
    if isinstance(dtype, dict) and list(dtype.values()) == [None]:
        dtype = next(iter(dtype))  # {"F32": null}, another spelling of "F32" to serde
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _refusal(path, key, "unknown dtype", expected=", ".join(BITS), found=repr_of(dtype))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _refusal(path, key, _NO_PAIR, found=repr_of(offsets))
    return _DTYPES[dtype], tuple(shape) if isinstance(shape, list) else shape, *offsets


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_SIZE


def _bits(shape: tuple[object, ...], bits: int) -> int | None:
    """The bits of a tensor; None where a size, or a product in the order of the sizes, does not fit 64 bits.

    So a shape is refused even if a later size is zero, as the safetensors library does.
    """
    if len(shape) > _MANY:
        return _bits_of_many(shape, bits)
    count = 1
    for size in shape:
        if type(size) is not int or not 0 <= size <= _LARGEST_SIZE:
            return None
        count *= size
        if count > _LARGEST_SIZE:
            return None
    count *= bits
    return count if count <= _LARGEST_SIZE else None


_MANY = 64


def _bits_of_many(shape: tuple[object, ...], bits: int) -> int | None:
    """:func:`_bits` of up to fifty million sizes, with no step of Python for each."""
    if set(map(type, shape)) != {int}:
        return None
    sizes = cast("tuple[int, ...]", shape)
    if min(sizes) < 0 or max(sizes) > _LARGEST_SIZE:
        return None
    before_zero = shape.index(0) if 0 in shape else len(shape)
    ones = shape[:before_zero].count(1)
    if before_zero - ones > _MANY:  # at least twos
        return None
    factors = tuple(size for size in shape[:before_zero] if size != 1)
    if len(shape) > before_zero:
        return 0 if _bits(factors, 1) is not None else None
    return _bits(factors, bits)


def _in_order(path: Path, rows: dict[str, _Row], data_start: int, file_size: int) -> dict[str, _Row]:
    """``rows`` in the order of their bytes, which cover the data without a gap."""
    key, position = _covered(rows)
    if key is not None:
        rows = dict(sorted(rows.items(), key=lambda item: item[1][2:]))
        key, position = _covered(rows)
    if key is not None:
        begin = rows[key][2]
        problem = "overlaps the one before it" if begin < position else "leaves a gap before it"
        raise FileFormatError(
            f"the tensor {problem}",
            where=f"{path}: {shortened(key)}",
            expected=f"start at byte {data_start + position}",
            found=f"byte {data_start + begin}",
            hint="the header is damaged or made to deceive: get the file from its source again",
        )
    if data_start + position != file_size:
        raise FileFormatError(
            "the file has bytes after the last tensor that its header names",
            where=path,
            expected=f"{data_start + position} bytes",
            found=f"{file_size} bytes",
        )
    return rows


def _covered(rows: Mapping[str, _Row]) -> tuple[str | None, int]:
    """The first tensor that does not begin where the one before it ends, and the end of that one."""
    position = 0
    for key, (_, _, begin, end) in rows.items():
        if begin != position:
            return key, position
        position = end
    return None, position
