"""The schemes that a plain weight can be written in: the names that ``quantise`` takes.

Keys and marks are ComfyUI's: ``weight``, ``weight_scale``, and the format in ``comfy_quant``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paramerge.storage.blocked import blocked_shape
from paramerge.storage.encoding import Encoding, Part
from paramerge.storage.layer import MARK
from paramerge.storage.schemes.mxfp8 import BLOCK


@dataclass(frozen=True)
class Written:
    """A scheme for plain weights.

    Attributes
    ----------
    encode:
        The encoding of a weight's key and shape (two axes).
    multiple:
        Rows and columns come in multiples of it.
    """

    name: str
    described: str
    encode: Callable[[str, tuple[int, int]], Encoding]
    multiple: int = 1


def _encoding(
    key: str,
    shape: tuple[int, int],
    dtype: str,
    scale: tuple[str, tuple[int, ...]],
    block: tuple[int, int],
    mark: Mapping[str, object] | None,
) -> Encoding:
    stem = key.removesuffix(".weight")
    marks = {} if mark is None else {f"{stem}.{MARK}": json.dumps(mark).encode()}
    part = Part(f"{stem}.weight_scale", *scale)
    return Encoding(dtype, shape, part, block, blocked=scale[0] == "U8", rounding="nearest", marks=marks)


def _fp8(key: str, shape: tuple[int, int]) -> Encoding:
    return _encoding(key, shape, "F8_E4M3", ("F32", ()), shape, {"format": "float8_e4m3fn"})


def _fp8_row(key: str, shape: tuple[int, int]) -> Encoding:
    return _encoding(key, shape, "F8_E4M3", ("F32", (shape[0], 1)), (1, shape[1]), None)


def _int8_row(key: str, shape: tuple[int, int]) -> Encoding:
    mark = {"format": "int8_tensorwise"}
    return _encoding(key, shape, "I8", ("F32", (shape[0], 1)), (1, shape[1]), mark)


def _mxfp8(key: str, shape: tuple[int, int]) -> Encoding:
    scales = blocked_shape(shape[0], shape[1] // BLOCK)
    return _encoding(key, shape, "F8_E4M3", ("U8", scales), (1, BLOCK), {"format": "mxfp8"})


QUANTISERS = {
    each.name: each
    for each in (
        Written("fp8", "fp8 e4m3 with a scale for the weight; ComfyUI reads it", _fp8),
        Written("fp8-row", "fp8 e4m3 with a scale for each row, without a mark: not for ComfyUI", _fp8_row),
        Written("int8-row", "int8 with a scale for each row; ComfyUI reads it", _int8_row),
        Written("mxfp8", "fp8 e4m3 with a power of two for each 32 inputs; ComfyUI reads it", _mxfp8, BLOCK),
    )
}
"""The schemes by name."""
