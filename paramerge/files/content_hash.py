"""Hashes of what a file holds, by which damage is found without any input (docs/recipe.md).

The content hash is of all tensors, in whatever order they were written; the header's hash is of the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

HEADER_KEY = "paramerge.header_sha256"
"""In the metadata: the SHA-256 of the header, in which these 64 digits are zeros."""

ZEROS = "0" * 64
"""A placeholder for a hash that is not known yet: same length, so no byte moves."""

_NOTHING = hashlib.sha256().hexdigest()
"""The hash of a tensor without bytes, of which no piece comes."""


class TensorDigests:
    """The SHA-256 of each tensor of a file. Pieces of one tensor come in their order, from one thread."""

    def __init__(self) -> None:
        self._digests: dict[str, hashlib._Hash] = {}

    def update(self, key: str, data: memoryview) -> None:
        """Add the next bytes of a tensor."""
        digest = self._digests.get(key)
        if digest is None:
            digest = self._digests[key] = hashlib.sha256()
        digest.update(data)

    def content_sha256(self, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> str:
        """The content hash (hex) of a file of tensors with this key, dtype and shape."""
        found = {key: digest.hexdigest() for key, digest in self._digests.items()}
        return content_sha256((key, dtype, shape, found.get(key, _NOTHING)) for key, dtype, shape in tensors)


def content_sha256(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """The content hash (hex) of a file, from key, dtype, shape and SHA-256 (hex) of each tensor.

    It is the SHA-256 of a line for each tensor, sorted by key: these four as a list in JSON, as Python's
    ``json.dumps`` writes it, and a line feed.
    """
    whole = hashlib.sha256()
    for key, dtype, shape, digest in sorted(tensors):
        whole.update(json.dumps([key, dtype, list(shape), digest]).encode() + b"\n")
    return whole.hexdigest()


def folder_content_sha256(files: Mapping[str, str]) -> str:
    """The content hash (hex) of a folder, from the content hash of each file of weights by its path in it.

    It is the SHA-256 of a line for each file, sorted by path: path and content hash as a list in JSON.
    """
    whole = hashlib.sha256()
    for path, digest in sorted(files.items()):
        whole.update(json.dumps([path, digest]).encode() + b"\n")
    return whole.hexdigest()


def header_sha256(header: bytes, stated: str) -> str:
    """The SHA-256 (hex) of a header in which ``stated``, its own hash, is replaced by zeros."""
    return hashlib.sha256(_replaced(header, stated, ZEROS)).hexdigest()


def sealed_header(header: bytes) -> bytes:
    """The header with its own hash at the place of the zeros under :data:`HEADER_KEY`."""
    return _replaced(header, ZEROS, hashlib.sha256(header).hexdigest())


def _replaced(header: bytes, before: str, after: str) -> bytes:
    """The header with another value of :data:`HEADER_KEY` (in text within JSON its quotes are escaped)."""
    entry = f'"{HEADER_KEY}":"'
    return header.replace(f'{entry}{before}"'.encode(), f'{entry}{after}"'.encode(), 1)
