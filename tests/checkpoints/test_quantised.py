"""Layers that are stored quantised: recognised by what stands beside them, refused by the scheme's name."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from baking import plan_of

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.checkpoints.quantised import quantised_tensors
from paramerge.errors import CheckpointError
from paramerge.files.header import read_header
from paramerge.files.tensors import stored
from paramerge.files.writer import write_safetensors

D = 32
LAYERS = [f"model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj")]
F8, F32, U8, I8 = ml_dtypes.float8_e4m3fn, np.float32, np.uint8, np.int8
SCALES = (
    "scale_weight",
    "weight_scale",
    "weight_scale_inv",
    "qscale_weight",
    "scale",
    "weight_scales",
    "scales",
)
SCHEMES = {
    **{f"scaled fp8 by {name}": {"weight": (F8, (D, D)), name: (F32, (1,))} for name in SCALES},
    "scaled fp8": {"weight": (F8, (D, D)), "scale_weight": (F32, ()), "scale_input": (F32, ())},
    "scaled fp8 beside": {"weight": (F8, (D, D)), "input_scale": (F32, ())},
    "NVFP4": {"weight": (U8, (D, D // 2)), "weight_scale": (F8, (D, 2)), "weight_scale_2": (F32, ())},
    "bitsandbytes": {"weight": (U8, (D * D // 2, 1)), "weight.absmax": (F32, (16,))},
    "bitsandbytes, 8": {"weight": (I8, (D, D)), "SCB": (F32, (D,))},
    "I8 with": {"weight": (I8, (D, D)), "weight_scale": (F32, (D, 1)), "comfy_quant": (U8, (9,))},
    "GPTQ": {"qweight": (np.int32, (D // 8, D)), "scales": (np.float16, (1, D))},
    "nunchaku": {"qweight": (I8, (D, 16)), "lora_down": (F32, (D, 4)), "lora_up": (F32, (D, 4))},
    "quanto": {"weight._data": (I8, (D, D)), "weight._scale": (F32, (D, 1))},
}  # fmt: skip
WHOLE = ("bitsandbytes", "GPTQ", "nunchaku", "quanto")
"""Schemes whose layers have no weight of their own shape: the model is refused as a whole."""


def model(folder: Path, parts: dict[str, tuple[type, tuple[int, ...]]], config: dict[str, object]) -> Path:
    """A language model with one layer stored so, and one plain."""
    folder.mkdir()
    tensors: dict[str, np.ndarray] = {
        "model.embed_tokens.weight": np.ones((50, D), np.float16),
        f"{LAYERS[1]}.weight": np.ones((D, D), np.float16),
        **{f"{LAYERS[0]}.{name}": np.ones(shape, dtype) for name, (dtype, shape) in parts.items()},
    }
    write_safetensors(folder / "model.safetensors", tensors, {})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def lora_on(folder: Path, layer: str) -> Path:
    folder.mkdir(exist_ok=True)
    stem = f"base_model.model.{layer}"
    rng = np.random.default_rng(0)
    factors = {
        f"{stem}.lora_{side}.weight": rng.normal(0, 0.1, shape).astype(np.float32)
        for side, shape in (("A", (4, D)), ("B", (D, 4)))
    }
    write_safetensors(folder / "adapter_model.safetensors", factors, {})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [layer.rpartition(".")[2]]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_layer_is_refused_by_its_scheme(scheme: str, tmp_path: Path) -> None:
    base = model(tmp_path / "base", SCHEMES[scheme], {})
    named = scheme.partition(" by ")[0].removesuffix(" beside").partition(",")[0]
    with pytest.raises(CheckpointError, match="quantised") as caught:
        plan_of(base, Step("lora", lora_on(tmp_path / "lora", LAYERS[0])))
    assert named in str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_dtype_is_given_to_what_is_quantised(scheme: str, tmp_path: Path) -> None:
    base = model(tmp_path / "base", SCHEMES[scheme], {})
    with pytest.raises(CheckpointError, match="quantised"):
        plan_of(base, Step("lora", lora_on(tmp_path / "lora", LAYERS[1])), dtype="bf16")


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in WHOLE])
def test_plain_layers_beside_quantised_ones_are_baked(scheme: str, tmp_path: Path) -> None:
    base = model(tmp_path / "base", SCHEMES[scheme], {})
    bake(plan_of(base, Step("lora", lora_on(tmp_path / "lora", LAYERS[1]))), tmp_path / "out")
    before, after = (read_header(path / "model.safetensors") for path in (base, tmp_path / "out"))
    changed = [k for k in before.tensors if stored(before, k).read_bytes() != stored(after, k).read_bytes()]
    assert changed == [f"{LAYERS[1]}.weight"]


def test_a_configuration_speaks_for_8_bits(tmp_path: Path) -> None:
    plain = {"weight": (F8, (D, D))}
    config: dict[str, object] = {"quantization_config": {"quant_method": "fbgemm_fp8"}}
    lora = lora_on(tmp_path / "lora", LAYERS[0])
    with pytest.raises(CheckpointError, match="fbgemm_fp8"):
        plan_of(model(tmp_path / "stated", plain, config), Step("lora", lora))
    plan_of(model(tmp_path / "plain", plain, {}), Step("lora", lora))
    plan_of(model(tmp_path / "wide", {"weight": (np.float16, (D, D))}, config), Step("lora", lora))


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


def test_plain_things_are_not_quantised() -> None:
    """Names that look like scales, where nothing is stored in few bits."""
    plain = {
        "a.weight": "F16", "a.bias": "F16", "a.scale": "F16", "norm.scale": "F8_E4M3",
        "b.weight": "F8_E4M3", "b.bias": "F8_E4M3", "b.running_mean": "F32", "c.scales": "F32",
        "adaln.scale_shift_table": "BF16", "logit_scale": "F32", "x.input_scale": "F32",
    }  # fmt: skip
    assert not quantised_tensors(plain)
