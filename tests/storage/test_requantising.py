"""Changed layers in their own scheme again: read back by the reference, the mean kept, the rest untouched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from baking import load, plan_of
from quantised_adapters import lora_on
from quantised_models import CASES, LAYERS, weight, write_model

from paramerge.apply.encoder import Encoder, scale_bytes
from paramerge.apply.steps import BakeOptions, Step
from paramerge.bake.bake import bake
from paramerge.bake.uncoded import without_codes
from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError, UsageError
from paramerge.storage.encoding import Encoding, Part

pytest.importorskip("comfy_kitchen")
pytest.importorskip("bitsandbytes")

Q = LAYERS[0]
UNWRITTEN = ("nvfp4", "bitsandbytes-int8", "bitsandbytes-4bit")
WRITTEN = [name for name, case in CASES.items() if case.scheme not in UNWRITTEN]
STEPS = {"F8_E4M3": 2.0**-3, "F8_E5M2": 2.0**-2, "I8": 1 / 127}
"""The distance of two codes: relative of floats, of the largest magnitude of whole numbers."""


@pytest.mark.parametrize("name", WRITTEN)
def test_a_changed_layer_has_the_same_scheme_and_is_within_a_code(name: str, tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES[name])
    lora, changes = lora_on(tmp_path / "lora")
    bake(plan_of(base, Step("lora", lora), requantise=True), tmp_path / "out")
    before, after = load(base), load(tmp_path / "out")
    assert before.raw.keys() == after.raw.keys()
    for key, array in before.tensors.items():
        assert (after.tensors[key].dtype, after.tensors[key].shape) == (array.dtype, array.shape)
        if not key.startswith(f"{Q}."):
            assert after.raw[key] == before.raw[key]
    sides = [open_base(folder).files[0].tensor(f"{Q}.weight") for folder in (base, tmp_path / "out")]
    exact, written = sides[0].read_exact() + changes[Q], sides[1].read_exact()
    step = STEPS[sides[0].info.dtype]
    largest = np.abs(exact).max(axis=1, keepdims=True) * (8 if "ConvRot" in name else 1)
    bound = step * (largest if step == STEPS["I8"] else np.maximum(np.abs(exact), largest * 2.0**-9))
    if name == "int8":
        bound = step * np.abs(exact).max()
    assert np.all(np.abs(written - exact) <= bound * 1.01)
    # the mean is kept: of the change, within what so many roundings can be off together
    kept = ((written - sides[0].read_exact()) * changes[Q]).sum() / (changes[Q] ** 2).sum()
    error = np.linalg.norm(written - exact) / np.linalg.norm(changes[Q]) / np.sqrt(exact.size)
    assert abs(kept - 1) <= 6 * error * np.sqrt((changes[Q] ** 2).max() / (changes[Q] ** 2).mean())


def test_the_same_bytes_come_out_every_time(tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES["blocks"])
    lora, _ = lora_on(tmp_path / "lora")
    for name in ("one", "two"):
        bake(plan_of(base, Step("lora", lora), requantise=True), tmp_path / name)
    assert load(tmp_path / "one").raw == load(tmp_path / "two").raw


def test_configuration_and_metadata_stay(tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES["mxfp8"], marks="metadata")
    lora, _ = lora_on(tmp_path / "lora")
    bake(plan_of(base, Step("lora", lora), requantise=True), tmp_path / "out")
    key = "_quantization_metadata"
    assert load(tmp_path / "out").metadata[key] == load(base).metadata[key]
    fine, _ = write_model(tmp_path / "fine", CASES["blocks"])
    bake(plan_of(fine, Step("lora", lora), requantise=True), tmp_path / "fine-out")
    assert json.loads((tmp_path / "fine-out/config.json").read_text()) == json.loads(
        (fine / "config.json").read_text()
    )


@pytest.mark.parametrize("name", ["nvfp4", "bitsandbytes", "nf4"])
def test_schemes_that_are_not_written_are_named(name: str, tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES[name])
    with pytest.raises(CheckpointError, match="read and not written"):
        plan_of(base, Step("lora", lora_on(tmp_path / "lora")[0]), requantise=True)


def test_there_must_be_something_to_requantise(tmp_path: Path) -> None:
    from paramerge.files.writer import write_safetensors

    base = tmp_path / "base"
    base.mkdir()
    tensors = {f"{layer}.weight": np.ones((64, 64), np.float16) for layer in LAYERS}
    write_safetensors(base / "model.safetensors", tensors, {})
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UsageError, match="nothing to requantise"):
        plan_of(base, Step("lora", lora_on(tmp_path / "lora")[0]), requantise=True)
    with pytest.raises(UsageError, match="in two ways"):
        BakeOptions(requantise=True, dtype="fp16")
    with pytest.raises(UsageError, match="in two ways"):
        BakeOptions(requantise=True, quantise="fp8")
    with pytest.raises(UsageError, match="no such choice"):
        BakeOptions(quantise="fp4")


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8"])
def test_codes_are_one_of_the_two_neighbours(dtype: str, rounding: str) -> None:
    values = weight("hard", 3).double()
    encoding = Encoding(dtype, (64, 64), Part("s", "F32", (4, 2)), (16, 32), rounding=rounding)
    encoder = Encoder(encoding, "a")
    for start in range(0, 64, 24):
        encoder.look(values[start : start + 24], start)
    scale = torch.frombuffer(bytearray(encoder.finish()["s"]), dtype=torch.float32).view(4, 2).double()
    codes = torch.empty((64, 64), dtype=torch.uint8)
    before = values.clone()
    for start in range(0, 64, 40):
        encoder.put(values[start : start + 40], codes[start : start + 40], start)
    assert torch.equal(values, before)
    scaled = values / scale.repeat_interleave(16, 0).repeat_interleave(32, 1)
    kind = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8}[dtype]
    found = codes.view(kind).double()
    if dtype == "I8":
        assert torch.all((found - scaled).abs() < (1 if rounding == "stochastic" else 0.5 + 1e-9))
    elif rounding == "nearest":
        assert torch.equal(found, scaled.float().to(kind).double())
    else:
        numbers = torch.arange(256, dtype=torch.uint8).view(kind).double()
        numbers = numbers[numbers.isfinite()].unique()
        above = torch.searchsorted(numbers, scaled).clamp(max=len(numbers) - 1)
        below = torch.searchsorted(numbers, scaled, right=True) - 1
        assert torch.all((found == numbers[above]) | (found == numbers[below]))
    by_place = scale.repeat_interleave(16, 0).repeat_interleave(32, 1)
    assert torch.equal(encoder.written(codes, 0), (found * by_place).float())


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E8M0"])
def test_scales_are_never_too_small(dtype: str) -> None:
    exact = np.abs(np.random.default_rng(0).normal(0, 0.01, 500)) + 1e-6
    _, values = scale_bytes(exact, dtype)
    assert np.all(values >= exact)
    assert np.all(values <= exact * (2 if dtype == "F8_E8M0" else 1.01) + 1e-7)


def test_mxfp8_is_written_as_comfy_kitchen_writes_it() -> None:
    """The same exponents, and with rounding to nearest the same codes."""
    from comfy_kitchen.backends.eager import quantization as eager

    from paramerge.storage.written import QUANTISERS

    for kind in ("random", "hard"):
        values = weight(kind)
        encoding = QUANTISERS["mxfp8"].encode("a.weight", (64, 64))
        encoder = Encoder(encoding, "a")
        encoder.look(values.double(), 0)
        parts = encoder.finish()
        codes = torch.empty((64, 64), dtype=torch.uint8)
        encoder.put(values.double(), codes, 0)
        wanted, scales = eager.quantize_mxfp8(values)
        assert parts["a.weight_scale"] == scales.view(torch.uint8).numpy().tobytes()
        assert torch.equal(codes.view(torch.float8_e4m3fn).float(), wanted.float())
        assert json.loads(parts["a.comfy_quant"]) == {"format": "mxfp8"}


@pytest.mark.parametrize("name", ["comfy_quant, e4m3", "rows", "mxfp8"])
def test_a_layer_can_be_written_plain_after_all(name: str, tmp_path: Path) -> None:
    """As ``lift`` does it to layers that need more."""
    base, _ = write_model(tmp_path / "base", CASES[name])
    lora, changes = lora_on(tmp_path / "lora", LAYERS[:2])
    plan = plan_of(base, Step("lora", lora), requantise=True)
    file = without_codes(plan.files[0], {f"{Q}.weight"}, "F16")
    bake(replace(plan, files=(file,)), tmp_path / "out")
    before, after = load(base), load(tmp_path / "out")
    exact = open_base(base).files[0].tensor(f"{Q}.weight").read_exact() + changes[Q]
    assert np.mean(after.tensors[f"{Q}.weight"] != exact.astype(np.float32).astype(np.float16)) <= 0.0005
    parts = {key for key in before.raw if key.startswith(f"{Q}.") and key != f"{Q}.weight"}
    assert before.raw.keys() - after.raw.keys() == parts


def test_lift_and_codes_go_together(tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES["blocks"])
    lora, _ = lora_on(tmp_path / "lora", LAYERS[:2], scale=0.001)
    plan = plan_of(base, Step("lora", lora), requantise=True, lift="bf16", accept_loss=True)
    bake(plan, tmp_path / "out")
    after = load(tmp_path / "out")
    raised = {layer.name.partition(".")[2] for layer in plan.lifted}
    for layer in LAYERS[:2]:
        kind = "bfloat16" if layer in raised else "float8_e4m3fn"
        assert str(after.tensors[f"{layer}.weight"].dtype) == kind
        assert (f"{layer}.weight_scale_inv" in after.raw) == (layer not in raised)


def test_an_output_can_be_verified_and_replayed(tmp_path: Path) -> None:
    import paramerge as pm

    base, _ = write_model(tmp_path / "base", CASES["blocks"])
    lora, _ = lora_on(tmp_path / "lora")
    pm.bake(base, [lora], tmp_path / "out", requantise=True)
    pm.bake(base, [lora], tmp_path / "plain")
    for name in ("out", "plain"):
        assert pm.verify(tmp_path / name, models=[tmp_path]).verdict == "identical"
        pm.replay(tmp_path / name, tmp_path / f"{name}-again", models=[tmp_path])
        assert load(tmp_path / name).raw == load(tmp_path / f"{name}-again").raw
