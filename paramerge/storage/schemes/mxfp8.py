"""ComfyUI's mxfp8: 8-bit floats with a power of two for each 32 inputs, in the order of NVIDIA's kernels."""

from __future__ import annotations

from paramerge.storage.blocked import blocked_shape, from_blocked
from paramerge.storage.encoding import Encoding, Part
from paramerge.storage.layer import StoredLayer
from paramerge.storage.scales import Grid, read_scale
from paramerge.storage.scheme import OpenCodes, Scheme

BLOCK = 32
_PARTS = {"weight_scale", "input_scale", "comfy_quant"}


class Mxfp8(Scheme):
    """``value = code * 2^(exponent - 127)``, and 0 where the exponent is stored as 0."""

    name = "mxfp8"
    title = "mxfp8"
    formats = ("mxfp8",)
    reference = "comfy-kitchen `dequantize_mxfp8`"

    def fits(self, layer: StoredLayer) -> bool:
        """Whether a mark says so."""
        return layer.marked_as == "mxfp8"

    def shape(self, layer: StoredLayer) -> tuple[int, ...]:
        """The weight's shape, once its exponents fit it."""
        codes = layer.codes
        if codes.dtype != "F8_E4M3" or len(codes.shape) != 2 or codes.shape[1] % BLOCK:
            raise layer.contradiction(
                "a layer's codes are not those of mxfp8",
                f"F8_E4M3 with a multiple of {BLOCK} columns",
                f"{codes.dtype} {list(codes.shape)}",
            )
        if others := sorted(layer.parts.keys() - _PARTS):
            raise layer.contradiction("a layer has tensors of two schemes", "weight_scale", ", ".join(others))
        scale = layer.parts.get("weight_scale")
        if scale is None:
            raise layer.missing("weight_scale")
        expected = blocked_shape(codes.shape[0], codes.shape[1] // BLOCK)
        if scale.dtype not in ("U8", "F8_E8M0") or scale.info.elements != expected[0] * expected[1]:
            raise layer.contradiction(
                "a scale is not of the shape that its weight needs",
                f"U8 {list(expected)}",
                f"{scale.dtype} {list(scale.shape)}",
            )
        return codes.shape

    def open(self, layer: StoredLayer) -> OpenCodes:
        """The codes by their exponents."""
        from paramerge.storage.codes import ByteCodes

        rows, columns = self.shape(layer)
        stored = layer.parts["weight_scale"]
        scale = read_scale(stored, zero=True)
        scale[scale == 2.0**-127] = 0  # as the reference has it, of blocks that are empty
        across = columns // BLOCK
        return ByteCodes(layer.codes, Grid(rows, across, 1, BLOCK), from_blocked(scale, rows, across))

    def encoding(self, layer: StoredLayer) -> Encoding:
        """The same codes and exponents."""
        shape, scale = self.shape(layer), layer.parts["weight_scale"]
        part = Part(scale.key, scale.dtype, scale.shape)
        return Encoding(layer.codes.dtype, shape, part, (1, BLOCK), blocked=True)
