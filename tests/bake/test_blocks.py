"""Block weights: names and vectors, which layers they mean, and what a bake makes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baking import (
    add,
    check_close,
    load,
    lora_file,
    para_file,
    plan_of,
    random_bases,
    random_factors,
    remove,
    rounded,
    shapes_of,
)

from paramerge.apply.steps import Step, parse_step
from paramerge.bake.bake import bake
from paramerge.bake.recipe import RECIPE_KEY
from paramerge.bake.summary import summarise
from paramerge.cli.main import main
from paramerge.errors import UsageError
from paramerge.models.names import ModuleName
from paramerge.models.unet_structure import standard_structure
from paramerge.resolve.blocks import BlockWeights, block_names, block_of, parse_blocks

LEVELS = {
    "sd15": (True, True, True, False),
    "sdxl": (False, True, True),
    "sdxl-refiner": (False, True, True, False),
}


@pytest.mark.parametrize("architecture", LEVELS)
def test_a_layers_block_is_the_number_in_its_ldm_name(architecture: str) -> None:
    label = "add_embedding" if architecture.startswith("sdxl") else "class_embedding"
    seen = set()
    for ldm, path in standard_structure(LEVELS[architecture], label=label).blocks():
        layer = {"resnets": "conv1", "attentions": "proj_in"}.get(path.split(".")[-2] if "." in path else "")
        block = block_of(ModuleName("unet", f"{path}.{layer}" if layer else path), architecture)
        if match := re.match(r"(input|output)_blocks\.(\d+)", ldm):
            assert block == f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02}"
        else:
            assert block == (
                "MID"
                if ldm.startswith("middle_block")
                else "IN00"
                if ldm.startswith("input_blocks.0")
                else "BASE"
            )
        seen.add(block)
    assert seen == set(block_names(architecture))
    assert block_of(ModuleName("text_encoder", "text_model.final_layer_norm.weight"), architecture) == "BASE"


@pytest.mark.parametrize(
    ("architecture", "length", "first", "last"),
    [("sd15", 17, "BASE", "OUT11"), ("sd15", 26, "BASE", "OUT11"), ("sdxl", 12, "BASE", "OUT05"),
     ("sdxl", 20, "BASE", "OUT08"), ("sd15-inpainting", 17, "BASE", "OUT11")],
)  # fmt: skip
def test_vectors_of_the_field(architecture: str, length: int, first: str, last: str) -> None:
    weights = BlockWeights(vector=tuple(range(length))).resolve(architecture)
    assert (min(weights, key=list(weights).index), [*weights][-1]) == (first, last)
    assert list(weights.values()) == list(range(length))
    assert set(weights) <= set(block_names(architecture))
    if length in (17, 12):  # the blocks that have transformers
        attentions = {
            block_of(ModuleName("unet", path), architecture)
            for _, path in standard_structure(LEVELS[architecture.removesuffix("-inpainting")]).blocks()
            if ".attentions." in path
        }
        assert set(weights) == attentions | {"BASE"}


@pytest.mark.parametrize(("architecture", "length"), [("sd15", 25), ("sdxl", 19)])
def test_a_vector_without_the_base_leaves_it_alone(architecture: str, length: int) -> None:
    weights = BlockWeights(vector=(0.25,) * length).resolve(architecture)
    assert weights == {**dict.fromkeys(block_names(architecture), 0.25), "BASE": 1.0}


def test_names_and_ways() -> None:
    weights = parse_blocks("in=0.25, IN04=0.5,m00=2").resolve("sdxl")
    assert weights == {
        "BASE": 1.0, **{f"IN{i:02}": 0.25 for i in range(9)}, "IN04": 0.5, "MID": 2.0,
        **{f"OUT{i:02}": 1.0 for i in range(9)},
    }  # fmt: skip
    assert parse_step("lora", "a@0.5:OUT03=0") == Step(
        "lora", Path("a"), 0.5, BlockWeights((("OUT03", 0.0),))
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("IN04=x", "cannot be read"),
        ("1,2,IN04=3", "cannot be read"),
        ("0.5", "cannot be read"),
        ("", "cannot be read"),
        ("IN04=nan", "not a finite number"),
        ("IN04=1,in04=2", "weighted twice"),
        ("IN09=1", "sdxl has no such block"),
        ("DOWN=1", "sdxl has no such block"),
        (",".join("1" * 17), "not one of sdxl"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_blocks(text).resolve("sdxl")


def test_unknown_architectures_have_no_blocks() -> None:
    with pytest.raises(UsageError, match="have no names"):
        parse_blocks("IN04=1").resolve("unknown")


@pytest.fixture
def inputs(models, tmp_path: Path) -> tuple[Path, dict[str, Any], Path]:
    base = models("sd15", layout="diffusers-folder", dtype="F32")
    layers = [layer for layer in shapes_of(base) if layer.endswith(("attn2.to_v", "self_attn.q_proj"))]
    factors = random_factors(shapes_of(base), layers, 2)
    return base, factors, lora_file(tmp_path / "l.safetensors", factors, dtype="F32")


def test_a_bake_weighs_each_block(inputs: tuple[Path, dict[str, Any], Path], tmp_path: Path) -> None:
    base, factors, lora = inputs
    plan = plan_of(base, parse_step("lora", f"{lora}@0.8:IN01=0.5,MID=0,OUT=-1,BASE=2"))
    bake(plan, tmp_path / "out")
    weights = {"IN01": 0.5, "MID": 0.0, "BASE": 2.0}
    for component in ("unet", "text_encoder"):
        before, after = load(base / component), load(tmp_path / "out" / component)
        for layer, (up, down) in factors.items():
            part, _, path = layer.partition(".")
            if part != component:
                continue
            block = block_of(ModuleName(part, path), "sd15")
            weight = weights.get(block, -1.0 if block.startswith("OUT") else 1.0)
            found, W = after.tensors[f"{path}.weight"], before.tensors[f"{path}.weight"].astype(np.float64)
            if weight == 0:
                assert np.array_equal(found, before.tensors[f"{path}.weight"])
            else:
                check_close(found, add(W, up, down, 0.8 * weight), layer)
    (step,) = summarise(plan).steps
    assert {use.block: (use.weight, use.layers) for use in step.blocks} == {
        "BASE": (2.0, 12), "IN01": (0.5, 1), "MID": (0.0, 1),
        **{f"IN0{i}": (1.0, 1) for i in (2, 4, 5, 7, 8)},
        **{f"OUT{i:02}": (-1.0, 1) for i in range(3, 12)},
    }  # fmt: skip
    metadata = load(tmp_path / "out" / "unet").metadata
    (recorded,) = json.loads(metadata[RECIPE_KEY])["steps"]
    assert recorded["blocks"]["IN01"] == {"weight": 0.5, "layers": 1}
    assert len(plan.left_alone) == 1 and "mid_block" in str(plan.left_alone[0])


def test_the_plan_echoes_them(
    inputs: tuple[Path, dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, _, lora = inputs
    vector = ",".join(["1"] * 17)
    for options in (["--dry-run"], ["--dry-run", "--json"]):
        with pytest.raises(SystemExit) as end:
            main(["bake", "--base", str(base), "--lora", f"{lora}@0.5:{vector}", *options])
        assert not end.value.code
        text = capsys.readouterr().out
        if "--json" in options:
            blocks = json.loads(text)["plan"]["steps"][0]["blocks"]
            assert {"block": "IN01", "weight": 1.0, "layers": 1} in blocks
        else:
            assert "step 1 by block (layers): BASE 1 (12), IN01 1 (1)" in " ".join(text.split())


def test_blocks_that_hold_nothing_and_blocks_left_out(
    inputs: tuple[Path, dict[str, Any], Path], models, tmp_path: Path
) -> None:
    base, _, lora = inputs
    with pytest.raises(UsageError, match="holds no layer of this adapter") as caught:
        plan_of(base, parse_step("lora", f"{lora}@1:IN00=0.5"))
    assert "IN01" in str(caught.value.expected)
    convolution = ["unet.down_blocks.3.resnets.0.conv1"]
    locon = lora_file(tmp_path / "c.safetensors", random_factors(shapes_of(base), convolution, 2))
    with pytest.raises(UsageError, match="leaves out blocks that the adapter changes") as caught:
        plan_of(base, parse_step("lora", f"{locon}@1:{','.join('1' * 17)}"))
    assert "IN10" in str(caught.value.expected)
    assert plan_of(base, parse_step("lora", f"{locon}@1:{','.join('1' * 26)}")).edits


def test_a_paras_strength_stays_within_its_range(models, tmp_path: Path) -> None:
    base = models("sd15", layout="diffusers-folder", dtype="F32")
    layers = [
        layer for layer in shapes_of(base) if layer.startswith("unet.") and layer.endswith("attn1.to_q")
    ]
    bases = random_bases(shapes_of(base), layers, 2)
    para = para_file(tmp_path / "p.safetensors", bases, dtype="F32")
    with pytest.raises(UsageError, match="is out of range"):
        parse_step("para", f"{para}@0.5:MID=3")
    bake(plan_of(base, parse_step("para", f"{para}@0.5:MID=2,IN=0.5")), tmp_path / "out")
    before, after = load(base / "unet"), load(tmp_path / "out" / "unet")
    for layer in layers:
        path = layer.removeprefix("unet.")
        block = block_of(ModuleName("unet", path), "sd15")
        strength = 0.5 * {"M": 2, "I": 0.5, "O": 1}[block[0]]
        W = before.tensors[f"{path}.weight"].astype(np.float64)
        check_close(after.tensors[f"{path}.weight"], remove(W, rounded(bases[layer], "F32"), strength), layer)


def test_a_merge_of_adapters_takes_none(tmp_path: Path) -> None:
    from paramerge.merge.request import parse_input

    with pytest.raises(UsageError, match="to a merge of adapters"):
        parse_input("a.safetensors@0.5:IN04=0.5")
