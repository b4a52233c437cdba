"""The plan for each stored tensor of a checkpoint, in the order of the bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from paramerge.apply.operations import Edit
from paramerge.apply.steps import Rounding
from paramerge.apply.values import Values
from paramerge.checkpoints.layout import WeightFile
from paramerge.files.dtypes import BITS
from paramerge.files.header import TensorInfo
from paramerge.storage.encoding import Encoding
from paramerge.storage.quantised import Quantised


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix; a vector or scalar is a column."""
    elements = math.prod(shape)
    return (elements, 1) if len(shape) < 2 or shape[0] == 0 else (shape[0], elements // shape[0])


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """The plan for one stored tensor. Without edits and with the same dtype its bytes are copied."""

    info: TensorInfo
    component: str
    dtype: str
    edits: tuple[Edit, ...]
    values: Values | None = None
    """Values to edit in place of the stored tensor's: of merged checkpoints, or of a quantised layer."""
    own_shape: tuple[int, ...] | None = None
    """The shape in the output where it is not the stored one: codes may be packed."""
    encoding: Encoding | None = None
    """The codes and scales that the values are written as, instead of as plain numbers."""
    written_with: str | None = None
    """The key of the codes with which this tensor is made and written: a new scale, a mark."""
    rounding: Rounding = "nearest"
    """The way in which changed values are rounded into the output."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the output."""
        return self.info.shape if self.own_shape is None else self.own_shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the output."""
        made = self.converted or self.encoding is not None or self.written_with is not None
        return math.prod(self.shape) * BITS[self.dtype] // 8 if made else self.info.nbytes

    @property
    def converted(self) -> bool:
        """Whether the output has another dtype."""
        return self.dtype != self.info.dtype

    @property
    def touched(self) -> bool:
        """Whether the tensor's values are worked on at all."""
        return bool(self.edits) or self.converted or self.values is not None or self.encoding is not None


@dataclass(frozen=True)
class FilePlan:
    """One file of weights: its tensors in the order of their bytes."""

    source: WeightFile
    tensors: tuple[TensorPlan, ...] = field(repr=False)
    dequantised: tuple[Quantised, ...] = field(repr=False, default=())
    """Quantised layers with tensors in this file that are written as plain numbers."""

    @property
    def relative(self) -> PurePosixPath:
        """The file's place in the output folder (its name, for a single file)."""
        return self.source.relative

    @property
    def touched(self) -> bool:
        """Whether any tensor of the file changes, or is left out."""
        left_out = len(self.tensors) < len(self.source.header.tensors)
        return left_out or any(tensor.touched for tensor in self.tensors)
