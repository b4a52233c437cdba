"""ComfyUI's int8 with ConvRot: groups of inputs are rotated by a Hadamard matrix before they are rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from paramerge.storage.encoding import Encoding
from paramerge.storage.hadamard import hadamard, is_group
from paramerge.storage.layer import StoredLayer
from paramerge.storage.scales import grid_of, read_scale, weight_scale
from paramerge.storage.scheme import OpenCodes
from paramerge.storage.schemes.int8 import FORMAT, ScaledInt8

if TYPE_CHECKING:
    import torch

    from paramerge.storage.codes import ByteCodes

_GROUP = 256
"""Inputs of a group where the mark does not say it."""


class ConvRotInt8(ScaledInt8):
    """``value = scale * (code H^T)``, by groups of inputs, with the regular Hadamard matrix ``H``."""

    name = "int8-convrot"
    title = "int8 ConvRot"
    formats: tuple[str, ...] = ()
    reference = "comfy-kitchen `dequantize_int8_convrot_weight` (in float64)"

    def fits(self, layer: StoredLayer) -> bool:
        """Whether the mark says that it is rotated."""
        return layer.marked_as == FORMAT and bool(layer.setting("convrot"))

    def shape(self, layer: StoredLayer) -> tuple[int, ...]:
        """The weight's shape, once its groups divide it."""
        shape = super().shape(layer)
        group = self._group(layer)
        if (
            not is_group(group)
            or len(shape) != 2
            or shape[1] % group
            or grid_of(layer, weight_scale(layer), shape).columns > 1
        ):
            raise layer.contradiction(
                "the groups of a rotated layer do not divide its inputs",
                "groups of a power of 4 that divide the inputs, and a scale for each row",
                f"groups of {group} in {list(shape)}",
            )
        return shape

    @staticmethod
    def _group(layer: StoredLayer) -> int:
        stated = layer.setting("convrot_groupsize")
        return _GROUP if stated is None else stated if type(stated) is int else 0

    def open(self, layer: StoredLayer) -> OpenCodes:
        """The codes, rotated back."""
        from paramerge.storage.codes import ByteCodes

        shape, scale = self.shape(layer), weight_scale(layer)
        codes = ByteCodes(layer.codes, grid_of(layer, scale, shape), read_scale(scale))
        return _Rotated(codes, hadamard(self._group(layer)))

    def encoding(self, layer: StoredLayer) -> Encoding:
        """The same codes, of the weight rotated with its change."""
        return replace(super().encoding(layer), group=self._group(layer))


class _Rotated:
    def __init__(self, codes: ByteCodes, matrix: np.ndarray) -> None:
        import torch

        self._codes, self._matrix = codes, torch.from_numpy(matrix)

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Put rows ``start`` to ``stop`` into ``out``: exact sums of whole numbers, then scaled."""
        import torch

        wide = torch.empty(out.shape, dtype=torch.float64)
        self._codes.read_unscaled(start, stop, wide)
        groups = wide.unflatten(1, (-1, len(self._matrix)))  # type: ignore[no-untyped-call]
        wide = (groups @ self._matrix.T).flatten(1)
        self._codes.scale(wide, start)
        out.copy_(wide)
