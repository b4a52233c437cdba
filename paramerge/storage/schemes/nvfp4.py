"""ComfyUI's nvfp4: 4-bit floats, a scale in 8 bits for each 16 inputs, and one for the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paramerge.errors import CheckpointError
from paramerge.files.tensors import StoredTensor
from paramerge.storage.blocked import blocked_shape, from_blocked
from paramerge.storage.layer import StoredLayer
from paramerge.storage.scales import read_scale
from paramerge.storage.scheme import OpenCodes, Scheme

if TYPE_CHECKING:
    import torch

BLOCK = 16
_PARTS = {"weight_scale", "weight_scale_2", "input_scale", "comfy_quant"}
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Nvfp4(Scheme):
    """``value = code * (scale of the weight * scale of the block)``."""

    name = "nvfp4"
    title = "NVFP4"
    formats = ("nvfp4",)
    reference = "comfy-kitchen `dequantize_nvfp4`"

    def fits(self, layer: StoredLayer) -> bool:
        """Whether a mark says so, or the two scales and the codes' dtype."""
        stated = layer.marked_as
        if stated is not None:
            return stated == "nvfp4"
        return "weight_scale_2" in layer.parts and layer.dtype in ("U8", "F4", "I8")

    def shape(self, layer: StoredLayer) -> tuple[int, ...]:
        """The weight's shape: two codes are in a byte."""
        if layer.mark is None:
            raise CheckpointError(
                "this layer is stored quantised (NVFP4), and nothing says in which order its scales are",
                where=layer.where,
                expected="a mark of ComfyUI (comfy_quant, or _quantization_metadata in the file's metadata)",
                found=", ".join(layer.parts),
                hint="take the fp16 or bf16 checkpoint, and quantise the result",
            )
        codes = layer.codes
        if codes.dtype != "U8" or len(codes.shape) != 2 or codes.shape[1] % (BLOCK // 2):
            raise layer.contradiction(
                "a layer's codes are not those of NVFP4",
                f"U8 with a multiple of {BLOCK // 2} columns",
                f"{codes.dtype} {list(codes.shape)}",
            )
        if others := sorted(layer.parts.keys() - _PARTS):
            raise layer.contradiction(
                "a layer has tensors of two schemes", "weight_scale, weight_scale_2", ", ".join(others)
            )
        for part in ("weight_scale", "weight_scale_2"):
            if part not in layer.parts:
                raise layer.missing(part)
        rows, columns = codes.shape[0], codes.shape[1] * 2
        expected = blocked_shape(rows, columns // BLOCK)
        blocks, whole = layer.parts["weight_scale"], layer.parts["weight_scale_2"]
        good = blocks.dtype in ("F8_E4M3", "U8") and blocks.info.elements == expected[0] * expected[1]
        if not good or whole.dtype != "F32" or whole.info.elements != 1:
            raise layer.contradiction(
                "a scale is not of the shape that its weight needs",
                f"F8_E4M3 {list(expected)}, and one number of F32",
                f"{blocks.dtype} {list(blocks.shape)}, and {whole.dtype} {list(whole.shape)}",
            )
        return rows, columns

    def open(self, layer: StoredLayer) -> OpenCodes:
        """The codes by both scales."""
        rows, columns = self.shape(layer)
        whole = np.float32(read_scale(layer.parts["weight_scale_2"]).reshape(()))
        blocks = _block_scales(layer.parts["weight_scale"], rows, columns // BLOCK)
        return _Nibbles(layer.codes, whole * blocks)  # rounded to float32 once, as in the reference


def _block_scales(scale: StoredTensor, rows: int, columns: int) -> np.ndarray:
    import ml_dtypes

    found = np.frombuffer(scale.read_bytes(), np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    found = from_blocked(found, rows, columns)
    if not np.isfinite(found).all() or (found < 0).any():
        raise CheckpointError(
            "a scale of a quantised layer is no number",
            where=f"{scale.path}: {scale.key}",
            expected="finite numbers, 0 or more",
            found=f"{int((~np.isfinite(found) | (found < 0)).sum())} others",
            hint="take the checkpoint from its source again; nothing was written",
        )
    return found


class _Nibbles:
    def __init__(self, codes: StoredTensor, scale: np.ndarray) -> None:
        import torch

        from paramerge.storage.codes import CodeRows

        self._rows = CodeRows(codes, codes.shape[1])
        self._scale = torch.from_numpy(scale)
        values = torch.tensor([*_VALUES, *(-value for value in _VALUES)], dtype=torch.float64)
        self._pairs = torch.stack(  # the higher four bits come first
            [values.repeat_interleave(16), values.repeat(16)], dim=1
        )

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Put rows ``start`` to ``stop`` into ``out``."""
        import torch

        packed = self._rows.read(start, stop)
        values = torch.index_select(self._pairs, 0, packed.reshape(-1).to(torch.int32))
        factors = self._scale[start:stop].to(torch.float64)
        blocks = values.view(len(packed), -1, BLOCK).mul_(factors[:, :, None])
        out.copy_(blocks.flatten(1))
