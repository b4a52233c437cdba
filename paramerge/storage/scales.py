"""Scales of codes: one for the whole weight, for each row, or for each block of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paramerge.errors import CheckpointError
from paramerge.files.dtypes import NUMPY, is_float
from paramerge.files.tensors import StoredTensor
from paramerge.storage.encoding import Encoding, Part
from paramerge.storage.layer import MARK, StoredLayer

WEIGHT_SCALES = (
    "scale_weight",
    "weight_scale",
    "weight_scale_inv",
    "qscale_weight",
    "scale",
    "weight_scales",
    "scales",
)
"""Names of the scale that codes are multiplied by, as programs have them."""

INPUT_SCALES = ("input_scale", "scale_input", "activation_scale", "qscale_act", "act_scale")
"""Names of scales of a layer's input, which are no part of the weight."""

SCALED_PARTS = frozenset((*WEIGHT_SCALES, *INPUT_SCALES, MARK, "weight_shape"))
"""All parts that a layer of codes and one scale may have."""

_EXPONENTS = ("F8_E8M0", "U8")
"""Dtypes of scales that are powers of two, of which the biased exponent is stored."""


@dataclass(frozen=True)
class Grid:
    """The blocks that a scale is laid over: ``rows`` by ``columns`` of them, each of a size."""

    rows: int
    columns: int
    block_rows: int
    block_columns: int

    @property
    def granularity(self) -> str:
        """``tensor``, ``row`` or ``block``."""
        if self.rows == self.columns == 1:
            return "tensor"
        return "row" if self.columns == 1 and self.block_rows == 1 else "block"


def weight_scale(layer: StoredLayer) -> StoredTensor:
    """The one scale of a layer's codes.

    Raises
    ------
    CheckpointError
        There is none, or more than one.
    """
    found = [name for name in WEIGHT_SCALES if name in layer.parts]
    if not found:
        raise layer.missing(f"a scale ({', '.join(WEIGHT_SCALES[:3])} ...)")
    if len(found) > 1:
        raise layer.contradiction("a quantised layer has two scales", "one of them", ", ".join(found))
    return layer.parts[found[0]]


def matrix_of(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a weight: its first axis against the others."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (math.prod(shape), 1)


def grid_of(layer: StoredLayer, scale: StoredTensor, shape: Sequence[int]) -> Grid:
    """The blocks of a weight of ``shape`` that ``scale`` is laid over.

    Raises
    ------
    CheckpointError
        The scale's shape is not that of the weight divided into blocks.
    """
    if not (is_float(scale.dtype) or scale.dtype in _EXPONENTS):
        raise layer.contradiction("a scale has a dtype that no scale has", "F32, F16, BF16", scale.dtype)
    rows, columns = matrix_of(shape)
    sizes = list(scale.shape)
    while len(sizes) > 2 and sizes[-1] == 1:  # of a convolution
        sizes.pop()
    if math.prod(sizes) == 1:
        return Grid(1, 1, rows, columns)
    down, across = (sizes[0], 1) if len(sizes) == 1 else (sizes[0], sizes[1]) if len(sizes) == 2 else (0, 0)
    block = _stated_block(layer.config)
    if block is not None and (down, across) == (-(-rows // block[0]), -(-columns // block[1])):
        return Grid(down, across, *block)
    divides = down and across and not rows % down and not columns % across
    if not divides or (len(shape) > 2 and across > 1):
        expected = f"one number, {rows} of them, or a grid that divides {rows} x {columns}"
        if block is not None:
            expected += f" (in blocks of {block[0]} x {block[1]}, as the configuration says)"
        raise layer.contradiction(
            "a scale is not of the shape that its weight needs",
            expected,
            f"shape {list(scale.shape)} of {scale.key.rpartition('.')[2]} on a weight {list(shape)}",
        )
    return Grid(down, across, rows // down, columns // across)


def _stated_block(config: Mapping[str, object]) -> tuple[int, int] | None:
    stated = config.get("weight_block_size")
    if isinstance(stated, list) and len(stated) == 2 and all(type(n) is int and n > 0 for n in stated):
        return stated[0], stated[1]
    return None


def same_encoding(layer: StoredLayer) -> Encoding:
    """The encoding of a layer's codes by one scale, as it is stored."""
    scale = weight_scale(layer)
    grid = grid_of(layer, scale, layer.codes.shape)
    part = Part(scale.key, scale.dtype, scale.shape)
    block = (grid.block_rows, grid.block_columns)
    return Encoding(layer.codes.dtype, layer.codes.shape, part, block)


def read_scale(scale: StoredTensor, *, zero: bool = False) -> np.ndarray:
    """A scale's numbers, float64; ``zero`` allows zeros.

    Raises
    ------
    CheckpointError
        One is not finite, or not above zero.
    """
    if scale.dtype in _EXPONENTS:
        exponents = np.frombuffer(scale.read_bytes(), np.uint8).astype(np.int32).reshape(scale.shape)
        values = np.where(exponents == 255, np.nan, np.ldexp(1.0, exponents - 127))
    else:
        values = np.frombuffer(scale.read_bytes(), NUMPY[scale.dtype]).astype(np.float64).reshape(scale.shape)
    good = np.isfinite(values) & ((values >= 0) if zero else (values > 0))
    if not good.all():
        where = int(np.argmin(good.reshape(-1)))
        value = float(values.reshape(-1)[where])
        raise CheckpointError(
            "a scale of a quantised layer is no number above zero",
            where=f"{scale.path}: {scale.key}",
            expected="finite numbers above 0",
            found=f"{value:g} at place {where}, and {int((~good).sum())} such in all",
            hint="take the checkpoint from its source again; nothing was written",
        )
    return values
