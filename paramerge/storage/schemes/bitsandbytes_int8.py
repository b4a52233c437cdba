"""bitsandbytes' LLM.int8: whole numbers by the largest magnitude of their row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paramerge.storage.layer import StoredLayer
from paramerge.storage.scales import matrix_of, read_scale
from paramerge.storage.scheme import OpenCodes, Scheme

if TYPE_CHECKING:
    import torch

    from paramerge.files.tensors import StoredTensor

_STEP = 7.874015718698502e-3
"""1 / 127 as float32, by which bitsandbytes multiplies."""


class BitsandbytesInt8(Scheme):
    """``value = code * SCB * (1 / 127)``, each product rounded to float32."""

    name = "bitsandbytes-int8"
    title = "bitsandbytes, 8 bits"
    reference = "bitsandbytes `int8_vectorwise_dequant`"

    def fits(self, layer: StoredLayer) -> bool:
        """Whether the rows' largest magnitudes (``SCB``) are beside the weight."""
        return "SCB" in layer.parts and {"SCB", "weight_format"}.issuperset(layer.parts)

    def shape(self, layer: StoredLayer) -> tuple[int, ...]:
        """The weight's shape, once there is a magnitude for each row."""
        codes, largest = layer.codes, layer.parts["SCB"]
        if codes.dtype != "I8" or len(codes.shape) != 2:
            raise layer.contradiction(
                "a layer's codes are not those of bitsandbytes",
                "I8 with two axes",
                f"{codes.dtype} {list(codes.shape)}",
            )
        if largest.dtype != "F32" or largest.info.elements != codes.shape[0]:
            raise layer.contradiction(
                "a scale is not of the shape that its weight needs",
                f"F32 [{codes.shape[0]}]",
                f"SCB of {largest.dtype} {list(largest.shape)}",
            )
        return codes.shape

    def open(self, layer: StoredLayer) -> OpenCodes:
        """The codes by their rows' magnitudes."""
        shape = self.shape(layer)
        order = layer.parts.get("weight_format")
        if order is not None and any(order.read_bytes()):
            raise layer.contradiction(
                "the weight is stored in the order of a kernel",
                "by rows (weight_format 0)",
                f"weight_format {order.read_bytes()[0]}",
            )
        largest = read_scale(layer.parts["SCB"], zero=True)
        _check_empty_rows(layer, largest)
        return _Rows(layer.codes, matrix_of(shape)[1], largest)


def _check_empty_rows(layer: StoredLayer, largest: np.ndarray) -> None:
    """Refuse rows whose largest magnitude is 0 and whose codes are not."""
    empty = np.flatnonzero(largest == 0)
    columns = layer.codes.shape[1]
    for row in empty.tolist():
        start = layer.codes.info.start + row * columns
        if any(layer.codes.source.read(start, start + columns)):
            raise layer.contradiction(
                "a scale of a quantised layer is no number above zero",
                "0 for rows of zeros alone",
                f"SCB of 0 for row {row}, whose codes are not 0",
            )


class _Rows:
    def __init__(self, codes: StoredTensor, columns: int, largest: np.ndarray) -> None:
        import torch

        from paramerge.storage.codes import CodeRows

        self._rows = CodeRows(codes, columns)
        self._largest = torch.as_tensor(largest, dtype=torch.float32).view(-1, 1)

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Put rows ``start`` to ``stop`` into ``out``."""
        import torch

        values = self._rows.read(start, stop).view(torch.int8).to(torch.float32)
        out.copy_(values.mul_(self._largest[start:stop]).mul_(_STEP))
