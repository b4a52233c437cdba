"""bitsandbytes' 4 bits (NF4, FP4): places in a table of 16 numbers, times a block's largest magnitude."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from paramerge.errors import CheckpointError
from paramerge.files.tensors import StoredTensor
from paramerge.storage.layer import StoredLayer, parsed_mark
from paramerge.storage.scales import matrix_of, read_scale
from paramerge.storage.scheme import OpenCodes, Scheme

if TYPE_CHECKING:
    import torch


class Bitsandbytes4Bit(Scheme):
    """``value = table[code] * absmax``; the magnitudes may be stored in 8 bits themselves."""

    name = "bitsandbytes-4bit"
    title = "bitsandbytes, 4 bits"
    reference = "bitsandbytes `dequantize_4bit`"
    weightless = True

    def fits(self, layer: StoredLayer) -> bool:
        """Whether a table or magnitudes of blocks are in the weight."""
        return not {"absmax", "quant_map", "quant_state", "nested_absmax"}.isdisjoint(layer.parts)

    def shape(self, layer: StoredLayer) -> tuple[int, ...]:
        """The weight's shape, which the state says."""
        for part in ("quant_state", "absmax", "quant_map"):
            if part not in layer.parts:
                raise layer.missing(part)
        shape, block, _ = _state(layer)
        count = math.prod(shape)
        blocks = -(-count // block)
        table, sizes = layer.parts["quant_map"], layer.parts["absmax"]
        if layer.codes.dtype != "U8" or layer.codes.info.elements != -(-count // 2):
            raise layer.contradiction(
                "a layer's codes are not those of its shape",
                f"U8, {-(-count // 2)} of them for {list(shape)}",
                f"{layer.codes.dtype} {list(layer.codes.shape)}",
            )
        if table.dtype != "F32" or table.info.elements != 16 or sizes.info.elements != blocks:
            raise layer.contradiction(
                "a scale is not of the shape that its weight needs",
                f"{blocks} magnitudes, and a table of 16 numbers",
                f"{sizes.dtype} {list(sizes.shape)}, and {table.dtype} {list(table.shape)}",
            )
        return shape

    def open(self, layer: StoredLayer) -> OpenCodes:
        """The codes by their magnitudes."""
        shape = self.shape(layer)
        _, block, state = _state(layer)
        table = np.frombuffer(layer.parts["quant_map"].read_bytes(), np.float32)
        return _Blocks(layer.codes, table, _magnitudes(layer, state), block, matrix_of(shape))


def _state(layer: StoredLayer) -> tuple[tuple[int, ...], int, Mapping[str, object]]:
    """The shape, the size of a block, and all that a layer's state says."""
    state = parsed_mark(layer.parts["quant_state"])
    shape, block = state.get("shape"), state.get("blocksize")
    sizes = isinstance(shape, list) and shape and all(type(size) is int and size > 0 for size in shape)
    if not isinstance(shape, list) or not sizes or type(block) is not int or block < 1:
        raise layer.contradiction(
            "the state of a quantised layer says no shape", "shape and blocksize", ", ".join(state)
        )
    return tuple(shape), block, state


def _magnitudes(layer: StoredLayer, state: Mapping[str, object]) -> np.ndarray:
    """The largest magnitude of each block, float32."""
    stored = layer.parts["absmax"]
    if stored.dtype == "F32":
        return read_scale(stored, zero=True).astype(np.float32).reshape(-1)
    nested, table = layer.parts.get("nested_absmax"), layer.parts.get("nested_quant_map")
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if stored.dtype != "U8" or nested is None or table is None:
        raise layer.missing("nested_absmax and nested_quant_map")
    if type(block) is not int or block < 1 or not isinstance(offset, int | float):
        raise layer.contradiction("the state of a quantised layer says no nested blocks", "numbers", block)
    codes = np.frombuffer(stored.read_bytes(), np.uint8)
    sizes = read_scale(nested, zero=True).astype(np.float32).reshape(-1)
    if table.info.elements != 256 or len(sizes) != -(-len(codes) // block):
        raise layer.contradiction(
            "a scale is not of the shape that its weight needs", -(-len(codes) // block), len(sizes)
        )
    numbers = np.frombuffer(table.read_bytes(), np.float32)[codes]
    found: np.ndarray = numbers * np.repeat(sizes, block)[: len(codes)] + np.float32(offset)
    if not np.isfinite(found).all():
        raise CheckpointError("a scale of a quantised layer is no number", where=layer.where)
    return found


class _Blocks:
    def __init__(
        self, codes: StoredTensor, table: np.ndarray, sizes: np.ndarray, block: int, matrix: tuple[int, int]
    ) -> None:
        import torch

        self._codes, self._columns, self._block = codes, matrix[1], block
        self._count = matrix[0] * matrix[1]
        self._table = torch.from_numpy(table.astype(np.float64))
        self._sizes = torch.from_numpy(sizes.astype(np.float64))

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Put rows ``start`` to ``stop`` into ``out``; of two codes in a byte the higher is the first."""
        import torch

        first, last = start * self._columns, min(stop * self._columns, self._count)
        begin = self._codes.info.start
        data = self._codes.source.read(begin + first // 2, begin + (last + 1) // 2)
        packed = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        codes = torch.stack([packed >> 4, packed & 15], dim=1).view(-1)[first % 2 :][: last - first]
        values = torch.index_select(self._table, 0, codes.to(torch.int32))
        values *= self._sizes[torch.arange(first, last) // self._block]
        out.copy_(values.view(out.shape))
