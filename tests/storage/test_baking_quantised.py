"""Adapters into quantised checkpoints: changed layers are plain and right, all others keep their bytes."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from baking import load, plan_of
from quantised_adapters import lora_on
from quantised_models import CASES, LAYERS, write_model

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.files.writer import write_safetensors

pytest.importorskip("comfy_kitchen")
pytest.importorskip("bitsandbytes")

BF16 = ml_dtypes.bfloat16
MARKED = [name for name, case in CASES.items() if case.mark]


def baked(base: Path, output: Path, lora: Path, **options: object) -> Path:
    bake(plan_of(base, Step("lora", lora), **options), output)
    return output


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "hard") for name in CASES), ("blocks", "random"), ("nvfp4", "random")]
)
def test_a_changed_layer_is_its_true_value_and_the_change_rounded_once(
    name: str, kind: str, tmp_path: Path
) -> None:
    base, _ = write_model(tmp_path / "base", CASES[name], kind)
    lora, changes = lora_on(tmp_path / "lora")
    (file,) = open_base(base).files
    before = load(base)
    # of weights of 1e4 the rounding to bf16 is larger than the whole change
    after = load(baked(base, tmp_path / "out", lora, accept_loss=kind == "hard"))
    key = f"{LAYERS[0]}.weight"
    exact = file.tensor(key).read_exact() + changes[LAYERS[0]]
    assert after.tensors[key].dtype == BF16
    nearest = exact.astype(np.float32).astype(BF16)
    assert np.mean(after.tensors[key] != nearest) <= 0.0005  # a sum of products in another order
    assert np.allclose(after.tensors[key].astype(np.float64), exact, rtol=2.0**-8, atol=1e-12)
    parts = {other for other in before.raw if other.startswith(f"{LAYERS[0]}.") and other != key}
    gone = before.raw.keys() - after.raw.keys()
    if CASES[name].marker:
        assert "scaled_fp8" in gone
    else:
        assert gone == parts
        assert all(after.raw[other] == before.raw[other] for other in after.raw if other != key)


@pytest.mark.parametrize("name", CASES)
def test_a_strength_of_0_gives_the_inputs_bytes(name: str, tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES[name])
    lora, _ = lora_on(tmp_path / "lora")
    bake(plan_of(base, Step("lora", lora, 0.0)), tmp_path / "out")
    before, after = load(base), load(tmp_path / "out")
    assert before.raw == after.raw
    assert [json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out")] == [
        json.loads((base / "config.json").read_text())
    ] * 2


@pytest.mark.parametrize("name", MARKED)
def test_plain_layers_leave_the_list_in_the_metadata(name: str, tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES[name], marks="metadata")
    lora, _ = lora_on(tmp_path / "lora")
    after = load(baked(base, tmp_path / "out", lora))
    listed = json.loads(after.metadata["_quantization_metadata"])
    assert listed == {
        "format_version": "1.0",
        "layers": {layer: dict(CASES[name].mark) for layer in LAYERS[1:3]},
    }
    lora, _ = lora_on(tmp_path / "all", LAYERS[:3])
    assert "_quantization_metadata" not in load(baked(base, tmp_path / "plain", lora)).metadata


def test_a_file_with_a_marker_is_dequantised_whole(tmp_path: Path) -> None:
    """Its readers make 8-bit floats of every plain layer beside scaled ones."""
    case = CASES["scale_weight and marker"]
    base, references = write_model(tmp_path / "base", case)
    lora, _ = lora_on(tmp_path / "lora")
    plan = plan_of(base, Step("lora", lora))
    assert any("marks the whole file" in warning and "2 more layers" in warning for warning in plan.warnings)
    after = load(baked(base, tmp_path / "out", lora))
    assert not [key for key in after.raw if "scale" in key]
    for layer in LAYERS[1:3]:
        assert np.array_equal(
            after.tensors[f"{layer}.weight"], references[layer].astype(np.float32).astype(BF16)
        )
    before = load(base)
    other = f"{LAYERS[3]}.weight"
    assert after.raw[other] == before.raw[other]


def test_plain_layers_are_named_in_the_configuration(tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES["blocks"])
    lora, _ = lora_on(tmp_path / "lora")
    out = baked(base, tmp_path / "out", lora)
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert settings == {**CASES["blocks"].config, "modules_to_not_convert": [LAYERS[0]]}
    lora, _ = lora_on(tmp_path / "all", LAYERS[:3])
    out = baked(base, tmp_path / "plain", lora)
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama"}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "fp16") for name in CASES), ("blocks", "bf16"), ("int8", "fp32")]
)
def test_another_dtype_is_that_of_the_true_values(name: str, dtype: str, tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES[name])
    lora, changes = lora_on(tmp_path / "lora")
    (file,) = open_base(base).files
    after = load(baked(base, tmp_path / "out", lora, dtype=dtype))
    kind = {"bf16": BF16, "fp16": np.float16, "fp32": np.float32}[dtype]
    assert {array.dtype for array in after.tensors.values()} == {np.dtype(kind)}
    assert not [key for key in after.raw if not key.endswith(".weight")]
    for layer in LAYERS[:3]:
        exact = file.tensor(f"{layer}.weight").read_exact() + changes.get(layer, 0)
        # NumPy rounds once to half precision, and ml_dtypes by way of float32
        nearest = exact.astype(kind) if dtype == "fp16" else exact.astype(np.float32).astype(kind)
        assert np.mean(after.tensors[f"{layer}.weight"] != nearest) <= 0.0005
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("requantise", [False, True])
def test_a_scale_may_be_in_another_shard(requantise: bool, tmp_path: Path) -> None:
    """Its shard loses it, the index too; or it is written again, beside its codes."""
    base, _ = write_model(tmp_path / "base", CASES["rows"])
    tensors = load(base).tensors
    (base / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    first, second = shards
    for key, array in tensors.items():
        shards[second if "q_proj.weight_scale" in key or "v_proj" in key else first][key] = array
    for name, held in shards.items():
        write_safetensors(base / name, held, {"format": "pt"})
    where = {key: name for name, held in shards.items() for key in held}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    lora, changes = lora_on(tmp_path / "lora")
    bake(plan_of(base, Step("lora", lora), requantise=requantise), tmp_path / "out")
    opened = open_base(tmp_path / "out")  # which holds the index to the shards
    places = {key: file for file in opened.files for key in file.header.tensors}
    key = f"{LAYERS[0]}.weight"
    assert (f"{key}_scale" in places) == requantise
    before = {key: file for file in open_base(base).files for key in file.header.tensors}
    exact = before[key].tensor(key).read_exact() + changes[LAYERS[0]]
    written = places[key].tensor(key).read_exact()
    assert np.linalg.norm(written - exact) <= 0.05 * np.linalg.norm(exact)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    assert index == {key: str(file.relative) for key, file in places.items()}
