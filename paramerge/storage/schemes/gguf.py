"""GGUF's types, as the ``gguf`` package reads them: Q4_0 to Q8_0, K-quants and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from paramerge.files.gguf import is_ggml
from paramerge.files.tensors import StoredTensor
from paramerge.storage.layer import StoredLayer
from paramerge.storage.scales import matrix_of
from paramerge.storage.scheme import OpenCodes, Scheme, not_read

if TYPE_CHECKING:
    import torch


class Gguf(Scheme):
    """The values of the ``gguf`` package in float32, row by row."""

    name = "gguf"
    title = "GGUF"
    reference = "gguf `dequantize`"
    foreign = True

    def fits(self, layer: StoredLayer) -> bool:
        """Whether the weight's type is GGML's."""
        return layer.dtype is not None and is_ggml(layer.dtype)

    def shape(self, layer: StoredLayer) -> tuple[int, ...]:
        """The weight's shape, once its type is one that is read and its rows are whole blocks."""
        codes = layer.codes
        kind, block, size = _type_of(layer)
        if codes.info.elements % block or codes.info.nbytes != codes.info.elements // block * size:
            raise layer.contradiction(
                "the blocks of a GGUF tensor do not divide its shape",
                f"blocks of {block} numbers in {size} bytes",
                f"{codes.info.nbytes} bytes for {list(codes.shape)} of {kind.name}",
            )
        return codes.shape

    def open(self, layer: StoredLayer) -> OpenCodes:
        """The blocks."""
        self.shape(layer)
        kind, block, size = _type_of(layer)
        rows, columns = matrix_of(layer.codes.shape)
        if columns % block:  # a convolution, or a vector: blocks go over the ends of rows
            return _Whole(layer.codes, kind, size)
        return _Rows(layer.codes, kind, layer.codes.info.nbytes // rows)


def _type_of(layer: StoredLayer) -> tuple[Any, int, int]:
    """GGML's type of a layer, the numbers and the bytes of its blocks; CheckpointError if it is not read."""
    import gguf

    kind = gguf.GGMLQuantizationType[str(layer.dtype)]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        raise not_read(layer.where, f"GGUF {layer.dtype}") from None
    return kind, block, size


def _values(data: np.ndarray, kind: Any) -> np.ndarray:
    import gguf

    with np.errstate(all="ignore"):  # NaN and Inf are refused by whoever needs the values
        return np.asarray(gguf.dequantize(data, kind), np.float32)


class _Rows:
    def __init__(self, codes: StoredTensor, kind: Any, row_bytes: int) -> None:
        from paramerge.storage.codes import CodeRows

        self._kind = kind
        self._rows = CodeRows(codes, row_bytes)

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Put rows ``start`` to ``stop`` into ``out``."""
        import torch

        out.copy_(torch.from_numpy(_values(self._rows.read(start, stop).numpy(), self._kind)))


class _Whole:
    def __init__(self, codes: StoredTensor, kind: Any, size: int) -> None:
        data = np.frombuffer(codes.read_bytes(), np.uint8).reshape(-1, size)
        self._values = _values(data, kind).reshape(matrix_of(codes.shape))

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Put rows ``start`` to ``stop`` into ``out``."""
        import torch

        out.copy_(torch.from_numpy(self._values[start:stop]))
