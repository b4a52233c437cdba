"""Kinds of files that are no safetensors, told by their first bytes: a page, a pointer, other weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from paramerge.errors import FileFormatError

START_BYTES = 256
"""Number of bytes at a file's beginning that are looked at."""

_AGAIN = (
    "download the file itself: open its address in a browser, or use a tool that follows links and logs in"
)
_SAFETENSORS = "give the model as safetensors: most are published so, too"
_UNSAFE = "convert it with a tool you trust, in a sandbox, and give the .safetensors file"
_LFS = "fetch the file itself: git lfs pull, or download it from the model's page"
_UNPACK = "unpack it, and give the .safetensors file in it"
_PARTIAL = "room was made for it and its bytes did not come: download it again"


@dataclass(frozen=True)
class _Kind:
    """A kind of files: its first bytes, its name, and the user's next step."""

    start: re.Pattern[bytes]
    name: str
    hint: str


def _kind(start: bytes, name: str, hint: str) -> _Kind:
    return _Kind(re.compile(start, re.IGNORECASE | re.DOTALL), name, hint)


_KINDS = (
    _kind(rb"version https://git-lfs", "a pointer of git-lfs, not the file itself", _LFS),
    _kind(rb"GGUF|ggml|lmgg|ggjt|tjgg|ggla|algg", "a GGUF file, with quantised weights", _SAFETENSORS),
    _kind(rb"PK[\x03\x05\x07]", "a zip archive, as pickles of torch are: it is never opened", _UNSAFE),
    _kind(rb"\x80[\x02-\x05]|\x93NUMPY", "a pickle: loading it could run any code in it", _UNSAFE),
    _kind(rb"\x89HDF\r\n", "an HDF5 file of Keras", _SAFETENSORS),
    _kind(rb"....TFL3", "a TensorFlow Lite model", _SAFETENSORS),
    _kind(rb"\x08[\x01-\x0f]\x12.", "an ONNX model", _SAFETENSORS),
    _kind(rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "a picture", _AGAIN),
    _kind(rb"....ftyp|\x1aE\xdf\xa3", "a film", _AGAIN),
    _kind(rb"%PDF", "a PDF document", _AGAIN),
    _kind(rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed archive", _UNPACK),
    _kind(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|!--|head|body)", "a page of the web (HTML)", _AGAIN),
    _kind(rb"(\xef\xbb\xbf)?\s*[{\[]", "JSON, perhaps the answer of a server or an index", _AGAIN),
    _kind(rb"\x00{16}", "empty but for zeros", _PARTIAL),
    _kind(rb"(\xef\xbb\xbf)?[\t\n\r -~]+\Z", "text", _AGAIN),
)
"""In the order in which they are tried; none of them can be the beginning of a safetensors file."""


def refuse_other_kind(path: Path, start: bytes) -> None:
    """Raise ``FileFormatError`` with the name of the kind, where ``start`` is known as another one's.

    Called for files whose first 8 bytes are no length of a header; ``start`` is their first
    :data:`START_BYTES` or fewer.
    """
    if start[8:9] == b"{":  # a header begins there: a safetensors file that was cut
        return
    for kind in _KINDS:
        if kind.start.match(start):
            line = start.split(b"\n", 1)[0][:60]
            text = line.isascii() and line.decode("ascii").isprintable()
            raise FileFormatError(
                f"this is {kind.name}",
                where=path,
                expected="a .safetensors file",
                found=f"it begins with {line.decode('ascii').strip()!r}" if text and line else None,
                hint=kind.hint,
            )
