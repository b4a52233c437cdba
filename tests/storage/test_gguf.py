"""GGUF files as bases: the values of the ``gguf`` package, written as safetensors."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from baking import load, plan_of

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.bake.output import default_output
from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError, FileFormatError, ParamergeError
from paramerge.files.writer import write_safetensors

gguf = pytest.importorskip("gguf")

D = 256
KEYS = {
    "cap_embedder.1.weight": (D, 512),
    "layers.0.attention.qkv.weight": (3 * D, D),
    "layers.0.attention.out.weight": (D, D),
    **{f"layers.0.feed_forward.w{number}.weight": (D, D) for number in (1, 2, 3)},
}
OUT = "layers.0.attention.out"
MADE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types that the package can write; of the others, blocks of random bits will do."""
TYPES = (*MADE, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "BF16")
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Places of a block's scales, in half precision."""


def packed(values: np.ndarray, kind: str) -> np.ndarray:
    """The bytes of a tensor as GGUF's type ``kind``."""
    number = gguf.GGMLQuantizationType[kind]
    if kind in MADE:
        return gguf.quantize(values, number)
    if kind == "BF16":
        return values.astype(ml_dtypes.bfloat16).view(np.uint8)
    block, size = gguf.GGML_QUANT_SIZES[number]
    bits = np.random.default_rng(5).integers(0, 256, (*values.shape[:-1], values.shape[-1] // block, size))
    bits = bits.astype(np.uint8)
    for place in HALVES.get(kind, (0,)):
        bits[..., place : place + 2] = np.array([0.004], np.float16).view(np.uint8)
    return bits.reshape(*values.shape[:-1], -1)


def write_gguf(path: Path, kind: str, more: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """A Z-Image of one layer, its matrices of type ``kind``; the values of each, float32."""
    writer = gguf.GGUFWriter(path, "lumina2")
    rng = np.random.default_rng(4)
    values = {}
    for key, shape in KEYS.items():
        data = packed(rng.normal(0, 0.02, shape).astype(np.float32), kind)
        writer.add_tensor(key, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        values[key] = np.asarray(gguf.dequantize(data, gguf.GGMLQuantizationType[kind]), np.float32)
    for key, array in {"x_embedder.weight": np.ones((D, 8), np.float32), **(more or {})}.items():
        writer.add_tensor(key, array)
        values[key] = array
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def lora_on(path: Path, layer: str = OUT) -> tuple[Path, np.ndarray]:
    rng = np.random.default_rng(1)
    A, B = (rng.normal(0, 0.02, shape).astype(np.float32) for shape in ((4, D), (D, 4)))
    keys = {f"diffusion_model.{layer}.lora_A.weight": A, f"diffusion_model.{layer}.lora_B.weight": B}
    write_safetensors(path, keys, {})
    return path, B.astype(np.float64) @ A.astype(np.float64)


@pytest.mark.parametrize("kind", TYPES)
def test_a_bake_into_gguf_is_of_the_packages_values(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "model.gguf"
    values = write_gguf(base, kind)
    lora, change = lora_on(tmp_path / "lora.safetensors")
    plan = plan_of(base, Step("lora", lora))
    bake(plan, tmp_path / "out.safetensors")
    after = load(tmp_path / "out.safetensors")
    assert after.tensors.keys() == values.keys()
    for key, array in after.tensors.items():
        if key == f"{OUT}.weight":
            exact = values[key].astype(np.float64) + change
            nearest = exact.astype(np.float32).astype(ml_dtypes.bfloat16)
            assert np.mean(array != nearest) <= 0.0005
        else:
            wanted = values[key] if key == "x_embedder.weight" else values[key].astype(ml_dtypes.bfloat16)
            assert array.dtype == wanted.dtype
            assert array.tobytes() == wanted.tobytes()


def test_the_default_name_is_a_safetensors_files(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "Q8_0")
    lora, _ = lora_on(tmp_path / "lora.safetensors")
    plan = plan_of(tmp_path / "model.gguf", Step("lora", lora))
    assert str(default_output(plan)) == "model+lora.safetensors"
    assert any("GGUF" in warning for warning in plan.warnings)


def test_values_are_those_that_diffusers_reads(tmp_path: Path) -> None:
    import torch
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    for kind in ("Q4_0", "Q8_0", "Q4_K", "Q6_K"):
        base = tmp_path / f"{kind}.gguf"
        write_gguf(base, kind)
        (file,) = open_base(base).files
        reader = {tensor.name: tensor for tensor in gguf.GGUFReader(base).tensors}
        for key in KEYS:
            number = gguf.GGMLQuantizationType[kind]
            theirs = dequantize_gguf_tensor(
                GGUFParameter(torch.from_numpy(reader[key].data.copy()), quant_type=number)
            )
            ours = file.tensor(key).read_exact()
            # theirs is worked out in half precision
            assert np.allclose(ours, theirs.double().numpy(), rtol=2.0**-8, atol=2.0**-8 * np.abs(ours).max())


def test_flattened_tensors_have_their_own_shape(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    for key, shape in KEYS.items():
        writer.add_tensor(key, np.ones(shape, np.float16))
    patch = np.arange(64, dtype=np.float32).reshape(4, 16) / 64
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("patch_embedding.weight", gguf.quantize(patch.reshape(1, 64), kind), raw_dtype=kind)
    writer.add_array("comfy.gguf.orig_shape.patch_embedding.weight", [4, 4, 1, 2, 2])
    writer.add_tensor("x_embedder.weight", np.ones((D, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (file,) = open_base(path).files
    tensor = file.tensor("patch_embedding.weight")
    assert tensor.shape == (4, 4, 1, 2, 2)
    assert np.allclose(tensor.read_exact().reshape(-1), patch.reshape(-1), atol=0.01)


def test_language_models_of_llama_cpp_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "llama.gguf"
    write_gguf(path, "Q8_0", {"blk.0.attn_q.weight": np.ones((4, 4), np.float32)})
    with pytest.raises(CheckpointError, match="language model"):
        open_base(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "Q8_0")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in (4, 8, 20, 24, 100, 300, 2000, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(FileFormatError):
            open_base(path)
    for _ in range(40):  # whatever else is in it, it is opened or refused
        broken = bytearray(data)
        for place in rng.integers(0, 700, 3):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        try:
            open_base(path)
        except ParamergeError:
            continue


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "Q8_0")
    (tensor,) = [t for t in gguf.GGUFReader(path).tensors if t.name == f"{OUT}.weight"]
    place = int(tensor.data_offset)
    data = bytearray(path.read_bytes())
    data[place : place + 2] = np.array([np.nan], np.float16).tobytes()
    path.write_bytes(data)
    lora, _ = lora_on(tmp_path / "lora.safetensors")
    with pytest.raises(ParamergeError, match="NaN or Inf"):
        bake(plan_of(path, Step("lora", lora)), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
