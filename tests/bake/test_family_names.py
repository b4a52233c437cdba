"""Families on models that are not Stable Diffusion's: their names, FLUX's stacks, norms and biases."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import model_zoo as zoo
import numpy as np
import pytest
import torch
from baking import plan_of
from family_cases import CASES, Case
from flux_models import as_single_file, flux_model, read
from safetensors.torch import save_file

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.errors import ShapeError, UnmatchedError
from paramerge.formats import open_adapter

ROUNDED = 4 * 2.0**-24


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    return flux_model(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, flux: Any) -> dict[str, Path]:
    llama = tmp_path_factory.mktemp("llama") / "model"
    zoo.random_model("llama").save_pretrained(llama)
    return {"flux": flux[0], "llama": llama}


def peft_config(tuner: str, targets: list[str]) -> Any:
    import peft

    common: dict[str, Any] = {"target_modules": targets}
    if tuner == "loha":
        return peft.LoHaConfig(r=3, alpha=2, **common)
    if tuner == "lokr":
        return peft.LoKrConfig(r=3, alpha=2, **common)
    if tuner == "dora":
        return peft.LoraConfig(r=3, lora_alpha=2, use_dora=True, **common)
    if tuner == "oft":
        return peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False, **common)
    return peft.IA3Config(feedforward_modules=targets[-1:], **common)


TARGETS = {
    "flux": ["to_q", "add_k_proj", "proj_mlp", "ff.net.2"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("tuner", ["loha", "lokr", "dora", "oft", "ia3"])
def test_what_peft_merges(name: str, tuner: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Name for name; IA3 scales biases along, where the model has them."""
    from peft import get_peft_model

    model = zoo.random_model(name)
    adapted: Any = get_peft_model(copy.deepcopy(model), peft_config(tuner, TARGETS[name]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.double().merge_and_unload().state_dict()
    bake(plan_of(folders[name], Step("adapter", tmp_path / "adapter")), tmp_path / "out")
    found, before = read(tmp_path / "out"), read(folders[name])
    for key, tensor in found.items():
        gap = torch.linalg.norm(tensor.double() - expected[key])
        # PEFT computes in float64 on float32 factors, some of it (DoRA's norms) in float32
        assert gap <= 1e-6 * torch.linalg.norm(expected[key]), key
    changed = {key for key in found if not torch.equal(found[key], before[key])}
    layers = {key.removesuffix(".weight") for key in changed if key.endswith(".weight")}
    assert layers == {key for key in (k.removesuffix(".weight") for k in found) if matches(key, name)}
    if tuner == "ia3" and name == "flux":
        assert "transformer_blocks.0.attn.to_q.bias" in changed


def matches(layer: str, name: str) -> bool:
    return any(layer.endswith(f".{target}") for target in TARGETS[name])


STACKS = (
    "double_blocks.0.img_attn.qkv",
    "single_blocks.1.linear1",
    "final_layer.adaLN_modulation.1",
    "double_blocks.1.img_mlp.0",
)


@pytest.mark.parametrize(
    "name", ["loha", "lokr-w1-whole", "lokr-large-first", "full", "dora-out", "dora-loha"]
)
def test_stacks_are_divided_by_rows(name: str, flux: Any, tmp_path: Path) -> None:
    """kohya's names of the single file, baked into the file and into the folder: the same weights."""
    folder, file, _ = flux
    before = read(file)
    case = case_named(name)
    shapes = {f"unet.{layer}": tuple(before[f"{layer}.weight"].shape) for layer in STACKS}
    path, stored = case.write(tmp_path / "adapter", shapes)
    strength = 0.7
    bake(plan_of(file, Step("adapter", path, strength)), tmp_path / "out.safetensors")
    bake(plan_of(folder, Step("adapter", path, strength)), tmp_path / "out")
    results = (read(tmp_path / "out.safetensors"), as_single_file(read(tmp_path / "out")))
    for key, tensor in before.items():
        layer = f"unet.{key.removesuffix('.weight')}"
        for found in results:
            if layer not in shapes:
                assert torch.equal(found[key], tensor), key
                continue
            expected = case.expected(stored[layer], tensor.double().numpy(), shapes[layer], strength)
            gap = np.linalg.norm(found[key].double().numpy() - expected)
            assert gap <= ROUNDED * np.linalg.norm(expected), key


@pytest.mark.parametrize("name", ["oft", "dora-in", "glora", "svdiff"])
def test_what_cannot_be_divided_is_refused_by_name(name: str, flux: Any, tmp_path: Path) -> None:
    folder, file, _ = flux
    layer = "double_blocks.0.img_attn.qkv"
    shape = tuple(read(file)[f"{layer}.weight"].shape)
    path, stored = case_named(name).write(tmp_path / "adapter", {f"unet.{layer}": shape})
    with pytest.raises(UnmatchedError) as caught:
        plan_of(folder, Step("adapter", path))
    assert "img_attn" in str(caught.value.found)
    assert "cannot be divided" in str(caught.value.hint)
    bake(plan_of(file, Step("adapter", path)), tmp_path / "out.safetensors")
    before = read(file)[f"{layer}.weight"].double().numpy()
    expected = case_named(name).expected(stored[f"unet.{layer}"], before, shape)
    found = read(tmp_path / "out.safetensors")[f"{layer}.weight"].double().numpy()
    assert np.linalg.norm(found - expected) <= ROUNDED * np.linalg.norm(expected)


def test_norms_and_biases_of_another_model(flux: Any, tmp_path: Path) -> None:
    """A norm, a stacked bias and the swapped bias, in the single file's names, into both layouts."""
    folder, file, _ = flux
    before = read(file)
    keys = {
        "lora_unet_double_blocks_1_img_attn_norm_query_norm.w_norm": (
            "double_blocks.1.img_attn.norm.query_norm.scale"
        ),
        "lora_unet_double_blocks_0_txt_attn_qkv.diff_b": "double_blocks.0.txt_attn.qkv.bias",
        "lora_unet_single_blocks_0_linear1.diff_b": "single_blocks.0.linear1.bias",
        "lora_unet_final_layer_adaLN_modulation_1.diff_b": "final_layer.adaLN_modulation.1.bias",
    }
    torch.manual_seed(0)
    tensors = {key: torch.randn_like(before[name]) for key, name in keys.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    bake(plan_of(file, Step("adapter", tmp_path / "a.safetensors")), tmp_path / "out.safetensors")
    bake(plan_of(folder, Step("adapter", tmp_path / "a.safetensors")), tmp_path / "out")
    added = {name: tensors[key] for key, name in keys.items()}
    for found in (read(tmp_path / "out.safetensors"), as_single_file(read(tmp_path / "out"))):
        for key, tensor in before.items():
            assert torch.equal(found[key], tensor + added[key] if key in added else tensor), key


def test_a_family_for_a_stack_of_another_size(flux: Any, tmp_path: Path) -> None:
    path, _ = case_named("lokr-w1-whole").write(
        tmp_path / "adapter", {"unet.double_blocks.0.img_attn.qkv": (32, 16)}
    )
    for base in flux[:2]:
        with pytest.raises(ShapeError, match="does not have the rows"):
            plan_of(base, Step("adapter", path))


@pytest.mark.parametrize("name", ["lokr-w1-whole", "glora"])
def test_names_that_a_stable_diffusion_unet_lacks(name: str, tmp_path: Path) -> None:
    """In a file with blocks of its UNet they are left over, and named; alone they are another model's."""
    case = case_named(name)
    good = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    wrong = "unet.double_blocks.0.img_attn.proj"
    both, _ = case.write(tmp_path / "both", {good: (16, 16), wrong: (16, 16)})
    adapter = open_adapter(both)
    assert [str(name) for name in adapter.modules] == [good]
    (leftover,) = adapter.leftovers
    assert {key.partition(".")[0] for key in leftover.keys} == {"lora_unet_double_blocks_0_img_attn_proj"}
    assert "the name is not that of a layer" in leftover.reason
    alone, _ = case.write(tmp_path / "alone", {wrong: (16, 16)})
    assert open_adapter(alone).leftovers == ()


def test_a_whole_weight_beside_a_family_is_left_over(tmp_path: Path) -> None:
    """PEFT's modules_to_save: no IA3 that has lost its other half."""
    case = case_named("lokr-peft")
    folder, _ = case.write(tmp_path / "a", {"model.model.layers.0.self_attn.q_proj": (16, 16)})
    tensors = read(folder) | {"base_model.model.model.norm.weight": torch.ones(16)}
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = open_adapter(folder)
    assert adapter.family == "lokr"
    (leftover,) = adapter.leftovers
    assert leftover.keys == ("base_model.model.model.norm.weight",)
    assert "modules_to_save" in leftover.reason
