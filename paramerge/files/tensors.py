"""A tensor in a file: known by its header entry, read only when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paramerge.errors import FileFormatError
from paramerge.files.dtypes import NUMPY
from paramerge.files.header import Header, TensorInfo
from paramerge.files.source import Source


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a safetensors file that has not been read."""

    source: Source
    info: TensorInfo

    @property
    def path(self) -> Path:
        """The file that it is in."""
        return self.source.path

    @property
    def key(self) -> str:
        """Its key in the file."""
        return self.info.key

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.info.shape

    @property
    def dtype(self) -> str:
        """Its dtype by the header's name, such as ``F16``."""
        return self.info.dtype

    def read_bytes(self) -> bytes:
        """Its raw bytes."""
        return self.source.read(self.info.start, self.info.stop)

    def read(self) -> np.ndarray:
        """The tensor in its own dtype (``ml_dtypes`` for bfloat16 and 8-bit floats)."""
        dtype = NUMPY.get(self.dtype)
        if dtype is None:
            raise FileFormatError(
                "this dtype cannot be computed with", where=f"{self.path}: {self.key}", found=self.dtype
            )
        data = np.empty(self.info.nbytes, np.uint8)
        self.source.read_into(data.data, self.info.start)
        return data.view(dtype).reshape(self.shape)

    def read_exact(self) -> np.ndarray:
        """The tensor as float32, or float64 if it is stored so: no value changes."""
        return self.read().astype(np.float64 if self.dtype == "F64" else np.float32)


def stored(header: Header, key: str) -> StoredTensor:
    """The tensor ``key`` of ``header``, unread."""
    return StoredTensor(header.source, header.tensors[key])
