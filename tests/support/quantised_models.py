"""Small models whose layers are stored quantised, as ComfyUI, transformers and bitsandbytes have them.

A case makes the tensors of one layer from a weight, and says by the reference's code what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

D = 64
STEM = "model.layers.0.self_attn"
LAYERS = [f"{STEM}.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

Tensors = dict[str, torch.Tensor]
Make = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]


@dataclass(frozen=True)
class Case:
    """A scheme as a program writes it: ``make`` gives the layer's parts and the reference's values."""

    scheme: str
    make: Make
    mark: Mapping[str, object] | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    marker: bool = False


def _fp8(name: str, shape: tuple[int, ...] = (), dtype: torch.dtype = E4M3) -> Make:
    def make(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        from comfy_kitchen.backends.eager import quantization as eager

        scale = (weight.abs().max() / torch.finfo(dtype).max).clamp(min=1e-12).float()
        codes = eager.quantize_per_tensor_fp8(weight, scale, dtype)
        values = eager.dequantize_per_tensor_fp8(codes, scale, torch.float32)
        return {"weight": codes, name: scale.reshape(shape)}, values

    return make


def _fp8_rows(name: str, shape: tuple[int, ...], scales: torch.dtype = torch.float32) -> Make:
    def make(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scale = (weight.abs().amax(1, keepdim=True) / 448).clamp(min=1e-12).to(scales)
        codes = (weight / scale.float()).clamp(-448, 448).to(E4M3)
        return {"weight": codes, name: scale.reshape(shape)}, codes.float() * scale.float()

    return make


def _fp8_blocks(name: str, block: int, exponents: bool = False) -> Make:
    """As transformers' ``Fp8Dequantize`` reads it."""

    def make(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize

        across = weight.unflatten(0, (-1, block)).unflatten(2, (-1, block))
        scale = (across.abs().amax((1, 3)) / 448).clamp(min=1e-12).float()
        if exponents:
            scale = torch.exp2(torch.ceil(torch.log2(scale)))
        codes = (across / scale[:, None, :, None]).clamp(-448, 448).flatten(2).flatten(0, 1).to(E4M3)
        values = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
        stored = scale.to(torch.float8_e8m0fnu) if exponents else scale
        return {"weight": codes, name: stored}, values

    return make


def _mxfp8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    from comfy_kitchen.backends.eager import quantization as eager

    codes, scale = eager.quantize_mxfp8(weight)
    values = eager.dequantize_mxfp8(codes, scale, torch.float32)
    return {"weight": codes, "weight_scale": scale.view(torch.uint8)}, values


def _nvfp4(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    from comfy_kitchen.backends.eager import quantization as eager

    whole = (weight.abs().max() / (448 * 6)).clamp(min=1e-12).float()
    codes, blocks = eager.quantize_nvfp4(weight, whole)
    values = eager.dequantize_nvfp4(codes, whole, blocks, torch.float32)
    return {"weight": codes, "weight_scale": blocks, "weight_scale_2": whole}, values


def _int8(per_row: bool) -> Make:
    def make(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        from comfy_kitchen.backends.eager import quantization as eager

        quantise = eager.quantize_int8_rowwise if per_row else eager.quantize_int8_tensorwise
        codes, scale = quantise(weight)
        return {"weight": codes, "weight_scale": scale}, eager.dequantize_int8_simple(codes, scale)

    return make


def _convrot(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    from comfy_kitchen.backends.eager import quantization as eager

    codes, scale = eager.quantize_int8_convrot_weight(weight, 64)
    values = eager.dequantize_int8_convrot_weight(codes, scale, 64)
    return {"weight": codes, "weight_scale": scale}, values


def _bitsandbytes(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    codes, largest, _ = int8_vectorwise_quant(weight.half())
    values = int8_vectorwise_dequant(codes, largest)
    return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}, values


def _four_bits(kind: str, nested: bool) -> Make:
    def make(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
        parts = {f"weight.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
        return {"weight": codes, **parts}, dequantize_4bit(codes, state)

    return make


CONVROT = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}
BITS_4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
CASES = {
    "scale_weight and marker": Case("fp8", _fp8("scale_weight"), marker=True),
    "weight_scale": Case("fp8", _fp8("weight_scale", (1,))),
    "e5m2": Case("fp8", _fp8("weight_scale", (), E5M2)),
    "comfy_quant, e4m3": Case("fp8", _fp8("weight_scale"), {"format": "float8_e4m3fn"}),
    "comfy_quant, e5m2": Case("fp8", _fp8("weight_scale", (), E5M2), {"format": "float8_e5m2"}),
    "weight_scale_inv, one": Case("fp8", _fp8("weight_scale_inv", (1, 1))),
    "qscale_weight": Case("fp8", _fp8("qscale_weight")),
    "scale": Case("fp8", _fp8("scale")),
    "weight_scales": Case("fp8", _fp8("weight_scales")),
    "scales": Case("fp8", _fp8("scales")),
    "rows": Case("fp8", _fp8_rows("weight_scale", (D,))),
    "rows, two axes, bf16": Case("fp8", _fp8_rows("weight_scale", (D, 1), torch.bfloat16)),
    "blocks": Case(
        "fp8",
        _fp8_blocks("weight_scale_inv", 16),
        config={"quant_method": "fp8", "weight_block_size": [16, 16]},
    ),
    "blocks of powers of two": Case("fp8", _fp8_blocks("weight_scale_inv", 32, exponents=True)),
    "mxfp8": Case("mxfp8", _mxfp8, {"format": "mxfp8"}),
    "nvfp4": Case("nvfp4", _nvfp4, {"format": "nvfp4"}),
    "int8": Case("int8", _int8(False), {"format": "int8_tensorwise"}),
    "int8 rows": Case("int8", _int8(True), {"format": "int8_tensorwise"}),
    "int8 rows, no mark": Case("int8", _int8(True)),
    "int8 ConvRot": Case("int8-convrot", _convrot, CONVROT),
    "nf4": Case("bitsandbytes-4bit", _four_bits("nf4", False), config=BITS_4),
    "nf4, nested": Case("bitsandbytes-4bit", _four_bits("nf4", True), config=BITS_4),
    "fp4": Case("bitsandbytes-4bit", _four_bits("fp4", False), config=BITS_4),
    "bitsandbytes": Case(
        "bitsandbytes-int8", _bitsandbytes, config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    ),
}


def weight(kind: str = "random", seed: int = 0) -> torch.Tensor:
    """A weight (D, D) float32: random, or of the values that are hard to store."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn((D, D), generator=generator) * 0.02
    if kind == "hard":
        found[0] = 0
        found[1] = -0.0
        found[2, ::2] = 1000
        found[3] = 1e-9
        found[4] *= 2.0 ** torch.arange(-50, 14)
        found[:, 5] = -1e3
    return found


def marked(mark: Mapping[str, object]) -> torch.Tensor:
    """A mark of ComfyUI as a tensor."""
    return torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)


def stored_layer(
    case: Case, layer: str, values: torch.Tensor, marks: str = "tensor"
) -> tuple[Tensors, torch.Tensor]:
    """The tensors of one layer by their keys, and the reference's values."""
    parts, reference = case.make(values)
    if case.mark is not None and marks == "tensor":
        parts["comfy_quant"] = marked(case.mark)
    return {f"{layer}.{part}": tensor for part, tensor in parts.items()}, reference


def write_model(
    folder: Path, case: Case, kind: str = "random", marks: str = "tensor"
) -> tuple[Path, dict[str, np.ndarray]]:
    """A language model of which three projections are stored by ``case``; its folder, and their values."""
    tensors: Tensors = {
        "model.embed_tokens.weight": torch.ones((50, D), dtype=torch.bfloat16),
        f"{LAYERS[3]}.weight": weight(seed=9).bfloat16(),
        "model.layers.0.input_layernorm.weight": torch.ones(D, dtype=torch.bfloat16),
    }
    references = {}
    for index, layer in enumerate(LAYERS[:3]):
        own, reference = stored_layer(case, layer, weight(kind, index), marks)
        tensors |= own
        references[layer] = reference.double().numpy()
    if case.marker:
        tensors["scaled_fp8"] = torch.zeros(2).to(E4M3)
    metadata = {"format": "pt"}
    if marks == "metadata" and case.mark is not None:
        listed = {"format_version": "1.0", "layers": {layer: dict(case.mark) for layer in LAYERS[:3]}}
        metadata["_quantization_metadata"] = json.dumps(listed)
    folder.mkdir(parents=True)
    save_file(
        {key: value.contiguous() for key, value in tensors.items()},
        str(folder / "model.safetensors"),
        metadata,
    )
    config = {"model_type": "llama", **({"quantization_config": dict(case.config)} if case.config else {})}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, references
