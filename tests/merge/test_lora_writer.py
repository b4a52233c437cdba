"""The LoRA writer: kohya's names for every layer, and what diffusers makes of the file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from baking import load
from blueprints import sd15, sdxl
from merging import ATTENTION, CONV, SHAPES, TEXT, draw_factors, name_of, rng_of, write_factors

from paramerge.adapters import LoraModule
from paramerge.errors import NonFiniteError, ShapeError, UsageError
from paramerge.formats import open_adapter
from paramerge.formats.kohya import KOHYA
from paramerge.formats.layers import underscored
from paramerge.formats.lora_writer import LoraFactors, write_lora
from paramerge.models.layer_kinds import layer_kind
from paramerge.models.names import ModuleName

BLUEPRINTS = {"sd15": sd15, "sdxl": sdxl}


def layers_of(architecture: str) -> list[ModuleName]:
    """Every matrix and convolution of an architecture's UNet and text encoders."""
    blueprint = BLUEPRINTS[architecture]()
    specs = [spec for part in blueprint.components if part != "vae" for spec in blueprint.component(part)]
    names = [
        ModuleName.parse(spec.parts[0][0].removesuffix(".weight"))
        for spec in specs
        if spec.parts and spec.parts[0][0].endswith(".weight") and len(spec.shape) > 1
    ]
    return [name for name in names if layer_kind(name) != "other" and ".embeddings." not in name.path]


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_every_layer_has_a_name_that_is_read_back(architecture: str) -> None:
    names = layers_of(architecture)
    stems = [KOHYA.stem(name, architecture) for name in names]
    assert len(set(stems)) == len(names) > 200
    for name, stem in zip(names, stems, strict=True):
        spelled = underscored(stem)
        assert spelled is not None and spelled.name == name


def test_prefixes_of_text_encoders() -> None:
    assert KOHYA.stem(name_of(TEXT), "sd15").startswith("lora_te_text_model_")
    assert KOHYA.stem(name_of(TEXT), "sdxl").startswith("lora_te1_text_model_")
    second = ModuleName("text_encoder_2", name_of(TEXT).path)
    assert KOHYA.stem(second, "sdxl").startswith("lora_te2_text_model_")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_what_is_written_is_read_back(tmp_path: Path, dtype: str) -> None:
    factors = draw_factors(0, 4)
    path = write_factors(tmp_path / "a.safetensors", factors, alpha=2.0, dtype=dtype)
    adapter = open_adapter(path)
    assert (adapter.family, adapter.dialect, adapter.architecture) == ("lora", "kohya", "sd15")
    assert {str(name) for name in adapter.modules} == set(factors)
    for layer, (up, down) in factors.items():
        module = adapter.modules[name_of(layer)]
        assert isinstance(module, LoraModule)
        assert (module.alpha, module.rank, module.kernel) == (2.0, 4, SHAPES[layer][2:])
        for stored, given in zip(module.factors(), (up, down), strict=True):
            np.testing.assert_array_equal(stored, given.astype(load(path).tensors[module.up.key].dtype))


def test_an_alpha_that_the_dtype_cannot_hold_is_stored_wider(tmp_path: Path) -> None:
    factors = draw_factors(0, 2, [ATTENTION, CONV])
    layers = {
        name_of(layer): LoraFactors(up, down, alpha, SHAPES[layer][2:])
        for (layer, (up, down)), alpha in zip(factors.items(), (0.1, 2.0), strict=True)
    }
    write_lora(tmp_path / "a.safetensors", layers, architecture="sd15")
    content = load(tmp_path / "a.safetensors").tensors
    alphas = {key: value.dtype.itemsize for key, value in content.items() if key.endswith(".alpha")}
    assert sorted(alphas.values()) == [2, 4]
    module = open_adapter(tmp_path / "a.safetensors").modules[name_of(ATTENTION)]
    assert isinstance(module, LoraModule) and module.alpha == float(np.float32(0.1))


def test_every_tensor_begins_at_a_multiple_of_its_element(tmp_path: Path) -> None:
    path = write_factors(tmp_path / "a.safetensors", draw_factors(0, 3), alpha=0.3, dtype="F16")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    sizes = {"F32": 4, "F16": 2}
    entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
    assert {entry["dtype"] for entry in entries.values()} == {"F16", "F32"}
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in entries.values())


def test_the_same_layers_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_factors(tmp_path / "a.safetensors", draw_factors(0, 3), alpha=1.5)
    second = write_factors(tmp_path / "b.safetensors", draw_factors(0, 3), alpha=1.5)
    assert first.read_bytes() == second.read_bytes()


def one_layer(**changes: object) -> dict[ModuleName, LoraFactors]:
    up, down = draw_factors(0, 2, [CONV])[CONV]
    content: dict[str, object] = {"up": up, "down": down, "alpha": 1.0, "kernel": (3, 3), **changes}
    return {name_of(CONV): LoraFactors(**content)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"up": np.full((12, 2), 1e6)}, NonFiniteError, "beyond the range of F16"),
        ({"down": np.full((2, 45), np.nan)}, NonFiniteError, "NaN"),
        ({"alpha": 1e-60}, NonFiniteError, "alpha"),
        ({"alpha": float("inf")}, NonFiniteError, "alpha"),
        ({"up": np.ones((12, 3))}, ShapeError, "do not fit"),
        ({"up": np.ones((12, 0)), "down": np.ones((0, 45))}, ShapeError, "do not fit"),
        ({"kernel": (2, 2)}, ShapeError, "kernel"),
        ({"kernel": (3,)}, ShapeError, "kernel"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        write_lora(tmp_path / "a.safetensors", one_layer(**changes), architecture="sd15")
    assert not list(tmp_path.iterdir())


def test_values_that_the_format_does_not_know_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UsageError, match="this dtype cannot be chosen"):
        write_lora(path, one_layer(), architecture="sd15", dtype="F64")
    with pytest.raises(UsageError, match="no layer"):
        write_lora(path, {}, architecture="sd15")
    with pytest.raises(UsageError, match="SHA-256"):
        write_lora(path, one_layer(), architecture="sd15", base_sha256=["abc"])
    with pytest.raises(UsageError, match="no name for a layer"):
        KOHYA.stem(ModuleName("unet", "down_blocks.0.nonsense"), "sd15")
    with pytest.raises(UsageError, match="no name for a layer"):
        KOHYA.stem(ModuleName("vae", "encoder.conv_in"), "sd15")


def test_the_base_is_named_where_readers_look(tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", one_layer(), architecture="sd15", base_sha256=["a" * 64])
    write_lora(tmp_path / "b.safetensors", one_layer(), architecture="sd15", base_sha256=["a" * 64, "b" * 64])
    assert open_adapter(tmp_path / "a.safetensors").base_hashes == ("a" * 64,)
    assert open_adapter(tmp_path / "b.safetensors").base_hashes == ("a" * 64, "b" * 64)


def tiny_unet(sdxl_like: bool):
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    common = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    if sdxl_like:
        return UNet2DConditionModel(
            **common,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            cross_attention_dim=12,
        )
    return UNet2DConditionModel(
        **common,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
    )


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_diffusers_loads_the_file_into_a_unet(tmp_path: Path, architecture: str) -> None:
    """Every Linear and Conv layer that the dialect can name; the fused weights are W + alpha / r * B A."""
    import torch
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    unet = tiny_unet(architecture == "sdxl")
    rng = rng_of(0)
    layers, expected = {}, {}
    for path, module in unet.named_modules():
        name = ModuleName("unet", path)
        if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d) or layer_kind(name) in (
            "other",
            "embedding",
        ):
            continue
        weight = module.weight.detach().double().numpy()
        up = rng.standard_normal((weight.shape[0], 3))
        down = rng.standard_normal((3, weight[0].size)) * 0.1
        layers[name] = LoraFactors(up, down, 1.5, weight.shape[2:])
        expected[path] = weight + 0.5 * (up @ down).reshape(weight.shape)
    assert any(layer.kernel == (3, 3) for layer in layers.values())
    write_lora(tmp_path / "a.safetensors", layers, architecture=architecture, dtype="F32")
    mixin = StableDiffusionXLLoraLoaderMixin if architecture == "sdxl" else StableDiffusionLoraLoaderMixin
    state, alphas, *_ = mixin.lora_state_dict(str(tmp_path / "a.safetensors"))
    mixin.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    unet.fuse_lora()
    unet.unload_lora()
    fused = dict(unet.named_modules())
    for path, weight in expected.items():
        found = fused[path].weight.detach().double().numpy()
        assert np.abs(found - weight).max() <= 1e-5 * np.abs(weight).max(), path
