"""Plain checkpoints written quantised: paramerge and comfy-kitchen read the same values back."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from baking import load, plan_of
from safetensors.torch import load_file

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.errors import UsageError
from paramerge.files.writer import write_safetensors
from paramerge.storage.written import QUANTISERS

pytest.importorskip("comfy_kitchen")

D = 64
KEYS = {
    "cap_embedder.1.weight": (D, 128),
    "x_embedder.weight": (D, 16),
    "layers.0.attention.qkv.weight": (3 * D, D),
    "layers.0.attention.out.weight": (D, D),
    **{f"layers.0.feed_forward.w{number}.weight": (D, D) for number in (1, 2, 3)},
}
IN_BLOCKS = [key for key in KEYS if key.startswith("layers.")]
OUT = "layers.0.attention.out"


@pytest.fixture(params=["F32", "F16", "BF16"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A Z-Image of one layer."""
    kind = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[request.param]
    rng = np.random.default_rng(8)
    tensors = {key: rng.normal(0, 0.02, shape).astype(kind) for key, shape in KEYS.items()}
    tensors["layers.0.attention_norm1.weight"] = np.ones(D, kind)
    path = tmp_path / "base.safetensors"
    write_safetensors(path, tensors, {})
    return path


def lora_on(path: Path) -> tuple[Path, np.ndarray]:
    rng = np.random.default_rng(1)
    A, B = (rng.normal(0, 0.02, shape).astype(np.float32) for shape in ((4, D), (D, 4)))
    keys = {f"diffusion_model.{OUT}.lora_A.weight": A, f"diffusion_model.{OUT}.lora_B.weight": B}
    write_safetensors(path, keys, {})
    return path, B.astype(np.float64) @ A.astype(np.float64)


def read_by_comfy_kitchen(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    """The layer's weight as ComfyUI's layouts read it."""
    from comfy_kitchen.backends.eager import quantization as eager

    codes, scale = tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"]
    mark = json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist()))
    if mark == {"format": "float8_e4m3fn"}:
        return eager.dequantize_per_tensor_fp8(codes, scale, torch.float32)
    if mark == {"format": "mxfp8"}:
        return eager.dequantize_mxfp8(codes, scale.view(torch.float8_e8m0fnu), torch.float32)
    assert mark == {"format": "int8_tensorwise"}
    return eager.dequantize_int8_simple(codes, scale)


@pytest.mark.parametrize("scheme", QUANTISERS)
def test_layers_in_blocks_are_quantised_to_the_nearest(scheme: str, base: Path, tmp_path: Path) -> None:
    lora, change = lora_on(tmp_path / "lora.safetensors")
    bake(plan_of(base, Step("lora", lora), quantise=scheme), tmp_path / "out.safetensors")
    before, after = load(base), load(tmp_path / "out.safetensors")
    kept = [key for key in before.raw if key not in IN_BLOCKS]
    assert all(after.raw[key] == before.raw[key] for key in kept)
    tensors = load_file(str(tmp_path / "out.safetensors"))
    (file,) = open_base(tmp_path / "out.safetensors").files
    for key in IN_BLOCKS:
        layer = key.removesuffix(".weight")
        exact = before.tensors[key].astype(np.float64) + (change if layer == OUT else 0)
        written = file.tensor(key).read_exact()
        step = 1 / 127 if scheme == "int8-row" else 2.0**-3
        largest = np.abs(exact).max(1, keepdims=True)
        bound = step / 2 * (largest if scheme == "int8-row" else np.abs(exact)) + largest * 2.0**-9
        assert np.all(np.abs(written - exact) <= bound)
        if scheme == "fp8-row":
            assert tensors[f"{layer}.weight_scale"].shape == (exact.shape[0], 1)
        else:
            theirs = read_by_comfy_kitchen(tensors, layer)
            assert np.array_equal(theirs.numpy(), written.astype(np.float32))


@pytest.mark.parametrize("scheme", QUANTISERS)
def test_what_is_quantised_can_be_quantised_again(scheme: str, tmp_path: Path) -> None:
    """From one scheme to another, by the true values."""
    rng = np.random.default_rng(8)
    tensors = {key: rng.normal(0, 0.02, shape).astype(np.float32) for key, shape in KEYS.items()}
    write_safetensors(tmp_path / "base.safetensors", tensors, {})
    lora, _ = lora_on(tmp_path / "lora.safetensors")
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    bake(plan_of(tmp_path / "base.safetensors", Step("lora", lora), quantise="int8-row"), first)
    bake(plan_of(first, Step("lora", lora, 0.0), quantise=scheme), second)
    sides = [
        open_base(path).files[0].tensor("layers.0.attention.qkv.weight").read_exact()
        for path in (first, second)
    ]
    assert np.linalg.norm(sides[1] - sides[0]) <= (0.04 if scheme != "int8-row" else 1e-6) * np.linalg.norm(
        sides[0]
    )
    marks = [key for key in load(second).raw if key.endswith("comfy_quant")]
    assert len(marks) == (0 if scheme == "fp8-row" else len(IN_BLOCKS))


def test_a_folder_is_not_quantised(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    layer = "model.layers.0.self_attn.q_proj"
    write_safetensors(folder / "model.safetensors", {f"{layer}.weight": np.ones((D, D), np.float16)}, {})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    from quantised_adapters import lora_on as peft_lora

    with pytest.raises(UsageError, match="folder cannot be quantised"):
        plan_of(folder, Step("lora", peft_lora(tmp_path / "lora", [layer])[0]), quantise="fp8")
