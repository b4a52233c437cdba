"""Schemes are told by what stands beside a weight; those that are not read are refused by their own names."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from baking import load, plan_of
from quantised_adapters import lora_on

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError
from paramerge.files.header import read_header
from paramerge.files.writer import write_safetensors
from paramerge.storage.survey import survey

D = 64
LAYERS = [f"model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj")]
F8, F16, F32, U8, I8 = ml_dtypes.float8_e4m3fn, np.float16, np.float32, np.uint8, np.int8
UNREAD = {
    "NVFP4": {"weight": (U8, (D, D // 2)), "weight_scale": (F8, (D, 4)), "weight_scale_2": (F32, ())},
    "GPTQ": {"qweight": (np.int32, (D // 8, D)), "scales": (F16, (1, D))},
    "nunchaku": {"qweight": (I8, (D, 16)), "lora_down": (F32, (D, 4)), "lora_up": (F32, (D, 4))},
    "quanto": {"weight._data": (I8, (D, D)), "weight._scale": (F32, (D, 1))},
    "torchao": {"weight_qdata": (I8, (D, D)), "weight_scale": (F32, (D, 1))},
    "SDNQ": {"weight": (U8, (D * D // 2,)), "scale": (F16, (D, 1)), "zero_point": (F16, (D, 1))},
    "compressed-tensors": {"weight_packed": (U8, (D, D // 2)), "weight_scale": (F8, (D, 4))},
    "HQQ": {"W_q": (U8, (D, D // 2)), "scale": (F16, (D, 1))},
    "MLX": {"weight": (np.uint32, (D, D // 8)), "scales": (F16, (D, 1)), "biases": (F16, (D, 1))},
    "I8 with scale": {"weight": (I8, (D, D)), "scale": (F32, (D, 1))},
}  # fmt: skip
WHOLE = tuple(name for name in UNREAD if name not in ("NVFP4", "MLX", "I8 with scale"))
"""Schemes whose layers have no weight of their own shape: the model is refused as a whole."""


def model(folder: Path, parts: dict[str, tuple[type, tuple[int, ...]]], config: dict[str, object]) -> Path:
    """A language model with one layer stored so, and one plain."""
    folder.mkdir()
    tensors: dict[str, np.ndarray] = {
        "model.embed_tokens.weight": np.ones((50, D), F16),
        f"{LAYERS[1]}.weight": np.ones((D, D), F16),
        **{f"{LAYERS[0]}.{name}": np.ones(shape, dtype) for name, (dtype, shape) in parts.items()},
    }
    write_safetensors(folder / "model.safetensors", tensors, {})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


@pytest.mark.parametrize("scheme", UNREAD)
def test_a_scheme_that_is_not_read_is_refused_by_its_name(scheme: str, tmp_path: Path) -> None:
    base = model(tmp_path / "base", UNREAD[scheme], {})
    with pytest.raises(CheckpointError, match="quantised") as caught:
        plan_of(base, Step("lora", lora_on(tmp_path / "lora", LAYERS[:1])[0]))
    assert scheme in str(caught.value)


@pytest.mark.parametrize("scheme", UNREAD)
def test_no_dtype_is_given_to_what_is_not_read(scheme: str, tmp_path: Path) -> None:
    base = model(tmp_path / "base", UNREAD[scheme], {})
    with pytest.raises(CheckpointError, match="quantised"):
        plan_of(base, Step("lora", lora_on(tmp_path / "lora", LAYERS[1:])[0]), dtype="bf16")


@pytest.mark.parametrize("scheme", [name for name in UNREAD if name not in WHOLE])
def test_plain_layers_beside_it_are_baked(scheme: str, tmp_path: Path) -> None:
    base = model(tmp_path / "base", UNREAD[scheme], {})
    bake(plan_of(base, Step("lora", lora_on(tmp_path / "lora", LAYERS[1:])[0])), tmp_path / "out")
    before, after = load(base), load(tmp_path / "out")
    assert [key for key in before.raw if before.raw[key] != after.raw[key]] == [f"{LAYERS[1]}.weight"]


def test_a_configuration_speaks_for_8_bits(tmp_path: Path) -> None:
    """A scale is missing there, and nothing says that it is 1."""
    plain = {"weight": (F8, (D, D))}
    config: dict[str, object] = {"quantization_config": {"quant_method": "fbgemm_fp8"}}
    lora, _ = lora_on(tmp_path / "lora", LAYERS[:1])
    with pytest.raises(CheckpointError, match="lacks one of its tensors"):
        plan_of(model(tmp_path / "stated", plain, config), Step("lora", lora))
    plan_of(model(tmp_path / "plain", plain, {}), Step("lora", lora))
    plan_of(model(tmp_path / "wide", {"weight": (F16, (D, D))}, config), Step("lora", lora))


def test_a_configuration_of_sdnq_goes_before_the_names_of_scales(tmp_path: Path) -> None:
    parts = {"weight": (F8, (D, D)), "scale": (F32, (1, D))}
    config: dict[str, object] = {"quantization_config": {"quant_method": "sdnq"}}
    with pytest.raises(CheckpointError, match="SDNQ"):
        open_base(model(tmp_path / "base", parts, config))


def test_a_file_of_nunchaku_is_no_adapter(tmp_path: Path) -> None:
    parts = {
        "qweight": np.zeros((D, 16), I8),
        "lora_down": np.ones((D, 4), F32),
        "lora_up": np.ones((D, 4), F32),
    }
    path = tmp_path / "n.safetensors"
    write_safetensors(path, {f"single_transformer_blocks.0.mlp_fc1.{k}": v for k, v in parts.items()}, {})
    with pytest.raises(CheckpointError, match="nunchaku"):
        open_base(path)


def test_plain_things_are_not_quantised(tmp_path: Path) -> None:
    """Names that look like scales, where nothing is stored in few bits."""
    plain = {
        "a.weight": F16, "a.bias": F16, "a.scale": F16, "norm.scale": F8,
        "b.weight": F8, "b.bias": F8, "b.running_mean": F32, "c.scales": F32,
        "adaln.scale_shift_table": ml_dtypes.bfloat16, "logit_scale": F32, "x.input_scale": F32,
    }  # fmt: skip
    path = tmp_path / "plain.safetensors"
    write_safetensors(path, {key: np.ones(4, dtype) for key, dtype in plain.items()}, {})
    found = survey([read_header(path)])
    assert not found.layers
    assert not found.markers
