"""A quantised weight as a tensor of its true values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from paramerge.files.tensors import StoredTensor
from paramerge.storage.quantised import Quantised
from paramerge.storage.scales import matrix_of

if TYPE_CHECKING:
    from paramerge.storage.scheme import OpenCodes

TRUE_DTYPE = "F32"
"""The dtype that true values have for those who ask: they are exact in it but for one rounding."""


@dataclass(frozen=True, slots=True)
class TrueTensor(StoredTensor):
    """The weight of a quantised layer; ``info`` is that of its codes."""

    layer: Quantised = field(compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's own shape."""
        return self.layer.shape or self.info.shape

    @property
    def dtype(self) -> str:
        """The dtype of its values."""
        return TRUE_DTYPE

    def read_bytes(self) -> bytes:
        """The bytes of all tensors of the layer: layers of the same bytes have the same values."""
        return b"".join(tensor.read_bytes() for tensor in self.layer.tensors)

    def open(self) -> OpenCodes:
        """The values, to be read by rows; raises as :meth:`Quantised.open` does."""
        return self.layer.open()

    def read(self) -> np.ndarray:
        """The values, rounded to float32."""
        return self.read_exact().astype(np.float32)

    def read_exact(self) -> np.ndarray:
        """The values in float64."""
        import torch

        rows, columns = matrix_of(self.shape)
        values = torch.empty((rows, columns), dtype=torch.float64)
        self.open().read(0, rows, values)
        return values.numpy().reshape(self.shape)
