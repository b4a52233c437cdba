"""8-bit whole numbers with a scale for the weight or for each row: ComfyUI's ``int8_tensorwise``."""

from __future__ import annotations

from paramerge.storage.encoding import Encoding
from paramerge.storage.layer import StoredLayer
from paramerge.storage.scales import INPUT_SCALES, grid_of, read_scale, same_encoding, weight_scale
from paramerge.storage.scheme import OpenCodes, Scheme

FORMAT = "int8_tensorwise"
_PARTS = frozenset(("weight_scale", "scale_weight", *INPUT_SCALES))
"""Parts without a mark: under other names of a scale, whole numbers are stored in other orders, too."""


class ScaledInt8(Scheme):
    """``value = code * scale``."""

    name = "int8"
    title = "scaled int8"
    formats: tuple[str, ...] = (FORMAT,)
    reference = "comfy-kitchen `dequantize_int8_simple`"

    def fits(self, layer: StoredLayer) -> bool:
        """Whether the weight is of whole numbers with nothing beside it but scales, and not rotated."""
        stated = layer.marked_as
        if stated is not None:
            return stated == FORMAT and not layer.setting("convrot")
        return layer.dtype == "I8" and _PARTS.issuperset(layer.parts)

    def shape(self, layer: StoredLayer) -> tuple[int, ...]:
        """The weight's shape, once its scale fits it."""
        if layer.codes.dtype != "I8":
            raise layer.contradiction(
                "the mark of a quantised layer contradicts its codes", "I8", layer.codes.dtype
            )
        grid_of(layer, weight_scale(layer), layer.codes.shape)
        return layer.codes.shape

    def open(self, layer: StoredLayer) -> OpenCodes:
        """The codes by their scale."""
        from paramerge.storage.codes import ByteCodes

        shape, scale = self.shape(layer), weight_scale(layer)
        return ByteCodes(layer.codes, grid_of(layer, scale, shape), read_scale(scale))

    def encoding(self, layer: StoredLayer) -> Encoding:
        """The same codes, blocks and names."""
        return same_encoding(layer)
