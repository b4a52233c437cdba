"""8-bit floats with a scale for the weight, for each row, or for each block.

ComfyUI's ``scaled_fp8`` and its marks, transformers' fine-grained fp8 (Qwen, DeepSeek, Mistral), and
compressed-tensors' ``float-quantized``: the names of the scale differ, the values do not.
"""

from __future__ import annotations

from paramerge.storage.encoding import Encoding
from paramerge.storage.layer import StoredLayer
from paramerge.storage.scales import SCALED_PARTS, grid_of, read_scale, same_encoding, weight_scale
from paramerge.storage.scheme import OpenCodes, Scheme

_FLOATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


class ScaledFp8(Scheme):
    """``value = code * scale``."""

    name = "fp8"
    title = "scaled fp8"
    formats = tuple(_FLOATS)
    reference = "comfy-kitchen `dequantize_per_tensor_fp8`, transformers `Fp8Dequantize`"

    def fits(self, layer: StoredLayer) -> bool:
        """Whether the weight is an 8-bit float with nothing beside it but scales."""
        stated = layer.marked_as
        if stated is not None:
            return stated in self.formats
        return layer.dtype in _FLOATS.values() and SCALED_PARTS.issuperset(layer.parts)

    def shape(self, layer: StoredLayer) -> tuple[int, ...]:
        """The weight's shape, once its scale fits it."""
        expected = _FLOATS.get(layer.marked_as or "", "F8_E4M3 or F8_E5M2")
        if layer.codes.dtype not in (expected, *(() if layer.marked_as else _FLOATS.values())):
            raise layer.contradiction(
                "the mark of a quantised layer contradicts its codes", expected, layer.codes.dtype
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
