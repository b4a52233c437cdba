"""Damaged and contradictory quantised layers: an error by name, nothing written; untouched, they stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from baking import load, plan_of
from quantised_adapters import lora_on
from quantised_models import CASES, CONVROT, LAYERS, marked, write_model
from safetensors.torch import load_file, save_file

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.errors import CheckpointError

pytest.importorskip("comfy_kitchen")
pytest.importorskip("bitsandbytes")

Q, K = LAYERS[:2]
Tensors = dict[str, torch.Tensor]


def setting(part: str, value: float, place: int = -1) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        scale = tensors[f"{Q}.{part}"].clone()
        scale.reshape(-1)[place] = value
        tensors[f"{Q}.{part}"] = scale

    return change


def to(part: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{Q}.{part}"] = make(tensors[f"{Q}.{part}"]).contiguous()

    return change


def without(part: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(f"{Q}.{part}")


def adding(part: str, tensor: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__setitem__(f"{Q}.{part}", tensor)


NAN, ONE = float("nan"), torch.tensor(1.0)
FAULTS = {
    "NaN": ("rows", setting("weight_scale", NAN), "no number above zero"),
    "Inf": ("weight_scale", setting("weight_scale", float("inf")), "no number above zero"),
    "zero": ("weight_scale", setting("weight_scale", 0.0), "no number above zero"),
    "negative": ("blocks", setting("weight_scale_inv", -1.0), "no number above zero"),
    "NaN of int8": ("int8 rows", setting("weight_scale", NAN), "no number above zero"),
    "NaN of ConvRot": ("int8 ConvRot", setting("weight_scale", NAN), "no number above zero"),
    "NaN of mxfp8": ("mxfp8", setting("weight_scale", 255), "no number above zero"),
    "NaN of nvfp4": ("nvfp4", setting("weight_scale_2", NAN), "no number above zero"),
    "NaN of nvfp4's blocks": ("nvfp4", setting("weight_scale", NAN, 0), "is no number"),
    "zero of bitsandbytes": ("bitsandbytes", setting("SCB", 0.0), "no number above zero"),
    "too few": ("rows", to("weight_scale", lambda s: s[:7]), "not of the shape"),
    "two axes too many": ("rows", to("weight_scale", lambda s: s.view(1, 1, -1)), "not of the shape"),
    "blocks that do not divide": ("blocks", to("weight_scale_inv", lambda s: s[:3]), "not of the shape"),
    "mxfp8 too few": ("mxfp8", to("weight_scale", lambda s: s[:64]), "not of the shape"),
    "nvfp4 too few": ("nvfp4", to("weight_scale", lambda s: s[:64]), "not of the shape"),
    "SCB too few": ("bitsandbytes", to("SCB", lambda s: s[:5]), "not of the shape"),
    "dtype": ("rows", to("weight_scale", lambda s: s.to(torch.int32)), "dtype that no scale has"),
    "missing": ("comfy_quant, e4m3", without("weight_scale"), "lacks one of its tensors"),
    "missing under a marker": ("scale_weight and marker", without("scale_weight"), "lacks one of its"),
    "missing of mxfp8": ("mxfp8", without("weight_scale"), "lacks one of its tensors"),
    "missing of nvfp4": ("nvfp4", without("weight_scale"), "lacks one of its tensors"),
    "no codes": ("comfy_quant, e4m3", without("weight"), ""),
    "two scales": ("weight_scale", adding("scale_weight", ONE), "two scales"),
    "two schemes": ("weight_scale", adding("SCB", torch.ones(64)), "SCB"),
    "two schemes with a mark": ("mxfp8", adding("weight_scale_2", ONE), "two schemes"),
    "another mark": ("weight_scale", adding("comfy_quant", marked({"format": "int8_tensorwise"})), "mark"),
    "a mark of fp8": ("int8", adding("comfy_quant", marked({"format": "float8_e4m3fn"})), "contradicts"),
    "a mark of the other fp8": ("e5m2", adding("comfy_quant", marked({"format": "float8_e4m3fn"})), "contra"),
    "a mark of mxfp8": ("int8", adding("comfy_quant", marked({"format": "mxfp8"})), "not those of mxfp8"),
    "a mark of nvfp4": ("int8", adding("comfy_quant", marked({"format": "nvfp4"})), "not those of NVFP4"),
    "an unknown mark": ("int8", adding("comfy_quant", marked({"format": "w4a8"})), "ComfyUI's w4a8"),
    "a mark without a format": ("int8", adding("comfy_quant", marked({})), "quantised"),
    "a mark of noise": ("int8", adding("comfy_quant", torch.ones(9, dtype=torch.uint8)), "cannot be read"),
    "groups": (
        "int8 ConvRot",
        adding("comfy_quant", marked(dict(CONVROT, convrot_groupsize=48))),
        "groups of a rotated layer",
    ),
    "codes of another shape": ("nvfp4", to("weight", lambda w: w[:, :9]), "not those of NVFP4"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_nothing_is_written(fault: str, tmp_path: Path) -> None:
    name, change, message = FAULTS[fault]
    base, _ = write_model(tmp_path / "base", CASES[name])
    path = base / "model.safetensors"
    tensors = load_file(str(path))
    change(tensors)
    save_file(tensors, str(path), {"format": "pt"})
    if "no codes" not in fault:
        with pytest.raises(CheckpointError, match=message) as caught:
            bake(plan_of(base, Step("lora", lora_on(tmp_path / "lora")[0])), tmp_path / "out")
        assert Q in str(caught.value)
        assert not (tmp_path / "out").exists()
    if CASES[name].marker:
        return
    # the fault is of no concern to others
    bake(plan_of(base, Step("lora", lora_on(tmp_path / "other", [K])[0])), tmp_path / "beside")
    before, after = load(base), load(tmp_path / "beside")
    assert all(after.raw[key] == before.raw[key] for key in before.raw if key.startswith(Q))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("weight.absmax", NAN), "no number above zero"),
        (to("weight.absmax", lambda sizes: sizes[:3]), "not of the shape"),
        (without("weight.quant_map"), "lacks one of its tensors"),
        (without("weight.quant_state.bitsandbytes__nf4"), "lacks one of its tensors"),
        (adding("weight.quant_state.bitsandbytes__nf4", torch.ones(9, dtype=torch.uint8)), "cannot be read"),
        (adding("weight.quant_state.bitsandbytes__nf4", marked({"shape": [64]})), "says no shape"),
        (to("weight", lambda codes: codes[:5]), "not those of its shape"),
    ],
)
def test_a_fault_of_4_bits_is_named(change: Callable[[Tensors], None], message: str, tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES["nf4"])
    path = base / "model.safetensors"
    tensors = load_file(str(path))
    change(tensors)
    save_file(tensors, str(path), {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        bake(plan_of(base, Step("lora", lora_on(tmp_path / "lora")[0])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_list_in_the_metadata_that_is_none_is_refused(tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES["weight_scale"])
    path = base / "model.safetensors"
    for text in ("nonsense", "[]", "{}", json.dumps({"layers": 3})):
        save_file(load_file(str(path)), str(path), {"_quantization_metadata": text})
        with pytest.raises(CheckpointError, match="list of quantised layers"):
            plan_of(base, Step("lora", lora_on(tmp_path / "lora")[0]))


def test_marks_that_say_two_things_are_refused(tmp_path: Path) -> None:
    base, _ = write_model(tmp_path / "base", CASES["comfy_quant, e4m3"])
    path = base / "model.safetensors"
    listed = {"layers": {layer: {"format": "float8_e5m2"} for layer in LAYERS[:3]}}
    save_file(load_file(str(path)), str(path), {"_quantization_metadata": json.dumps(listed)})
    with pytest.raises(CheckpointError, match="two things"):
        plan_of(base, Step("lora", lora_on(tmp_path / "lora")[0]))


@pytest.mark.parametrize("rows", [64, 60])
def test_a_last_block_may_be_smaller_where_the_configuration_says_the_size(rows: int, tmp_path: Path) -> None:
    """As in DeepSeek's models: 576 rows in blocks of 128."""
    base, _ = write_model(tmp_path / "base", CASES["blocks"])
    path = base / "model.safetensors"
    tensors = load_file(str(path))
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"][:rows].contiguous()
    save_file(tensors, str(path), {"format": "pt"})
    from paramerge.checkpoints.layout import open_base

    (file,) = open_base(base).files
    found = file.tensor(f"{Q}.weight").read_exact()
    scale = tensors[f"{Q}.weight_scale_inv"].double().repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert torch.equal(torch.from_numpy(found), tensors[f"{Q}.weight"].double() * scale[:rows])
