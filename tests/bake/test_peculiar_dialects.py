"""Dialects with names, parts or meanings of their own: each bakes what its trainer meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusion_transformers as small
import numpy as np
import pytest
from baking import plan_of
from checkpoint_files import write_holes
from dialect_files import SPELLINGS, write_lora
from lora_factors import changes, factors_of
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from single_files import namings, single_shapes

import paramerge
from paramerge.apply.steps import Step
from paramerge.errors import AdapterError, ArchitectureError, ParamergeError, UnmatchedError
from paramerge.formats import open_adapter
from paramerge.interpretation import Interpretation

Arrays = dict[str, NDArray[Any]]
RNG = np.random.default_rng(3)


def rnd(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def put(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: dict[str, str] | None = None) -> Path:
    save_file(dict(tensors), path, metadata)
    return path


def base_of(name: str, folder: Path, zeros: bool = False) -> Path:
    """A single file of a small model; of zeros, so that what is baked is all that is in the output."""
    shapes = small.small_shapes(name)
    single = single_shapes(namings(name, shapes)[0], shapes)
    path = folder / "base.safetensors"
    if zeros:
        return put(path, {key: np.zeros(shape, np.float32) for key, shape in single.items()})
    return write_holes(path, single, "F32")


def baked(base: Path, lora: Path, **options: Any) -> Arrays:
    output = base.with_name("out.safetensors")
    paramerge.bake(base, [lora], output, overwrite=True, **options)
    return load_file(output)


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_xlabs_is_where_diffusers_puts_it(prefix: str, tmp_path: Path) -> None:
    import torch
    from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers

    tensors: Arrays = {}
    for stem, rows, columns in (
        ("double_blocks.0.processor.qkv_lora1", 48, 16),
        ("double_blocks.0.processor.proj_lora1", 16, 16),
        ("double_blocks.1.processor.qkv_lora2", 48, 16),
        ("double_blocks.1.processor.proj_lora2", 16, 16),
        ("single_blocks.0.processor.qkv_lora", 48, 16),
        ("single_blocks.1.processor.proj_lora", 16, 80),
    ):
        tensors[f"{prefix}{stem}.up.weight"] = rnd(rows, 2)
        tensors[f"{prefix}{stem}.down.weight"] = rnd(2, columns)
    lora = put(tmp_path / "xlabs.safetensors", tensors)
    assert open_adapter(lora).dialect == "xlabs"
    theirs = _convert_xlabs_flux_lora_to_diffusers({k: torch.from_numpy(v) for k, v in tensors.items()})
    other = put(tmp_path / "theirs.safetensors", {k: v.contiguous().numpy() for k, v in theirs.items()})
    base = base_of("flux", tmp_path)
    ours, wanted = (changes(plan_of(base, Step("lora", file))) for file in (lora, other))
    assert ours.keys() == wanted.keys() and len(ours) == 6
    for key, change in wanted.items():
        np.testing.assert_array_equal(ours[key], change)


def test_bfl_control_sets_norms_and_adds_biases(tmp_path: Path) -> None:
    stem = "double_blocks.0.img_attn"
    tensors = {
        f"{stem}.qkv.lora_A.weight": rnd(2, 16),
        f"{stem}.qkv.lora_B.weight": rnd(48, 2),
        f"{stem}.qkv.lora_B.bias": rnd(48),
        f"{stem}.norm.query_norm.scale": rnd(8),
    }
    lora = put(tmp_path / "control.safetensors", tensors)
    found = baked(base_of("flux", tmp_path, zeros=True), lora)
    product = tensors[f"{stem}.qkv.lora_B.weight"].astype(float) @ tensors[f"{stem}.qkv.lora_A.weight"]
    np.testing.assert_allclose(found[f"{stem}.qkv.weight"], product, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[f"{stem}.qkv.bias"], tensors[f"{stem}.qkv.lora_B.bias"])
    np.testing.assert_array_equal(
        found[f"{stem}.norm.query_norm.scale"], tensors[f"{stem}.norm.query_norm.scale"]
    )


def test_modulations_whole_weights_and_biases_of_wan(tmp_path: Path) -> None:
    """As Kijai's and ComfyUI's tools write them."""
    tensors = {
        "diffusion_model.blocks.0.diff_m": rnd(1, 6, 16),
        "diffusion_model.blocks.1.ffn.0.set_weight": rnd(24, 16),
        "diffusion_model.blocks.1.self_attn.q.lora_down.weight": rnd(2, 16),
        "diffusion_model.blocks.1.self_attn.q.lora_up.weight": rnd(16, 2),
        "diffusion_model.blocks.1.self_attn.q.diff_b": rnd(16),
        "diffusion_model.blocks.1.norm3.diff": rnd(16),
    }
    lora = put(tmp_path / "l.safetensors", tensors)
    found = baked(base_of("wan", tmp_path, zeros=True), lora)
    np.testing.assert_array_equal(found["blocks.0.modulation"], tensors["diffusion_model.blocks.0.diff_m"])
    np.testing.assert_array_equal(
        found["blocks.1.ffn.0.weight"], tensors["diffusion_model.blocks.1.ffn.0.set_weight"]
    )
    np.testing.assert_array_equal(
        found["blocks.1.self_attn.q.bias"], tensors["diffusion_model.blocks.1.self_attn.q.diff_b"]
    )
    np.testing.assert_array_equal(
        found["blocks.1.norm3.weight"], tensors["diffusion_model.blocks.1.norm3.diff"]
    )


def test_a_stack_beside_its_parts_is_applied_once(tmp_path: Path) -> None:
    shapes = small.small_shapes("z-image")
    own, single = factors_of(namings("z-image", shapes)[0], shapes)
    both = {
        "layers.0.attention.qkv": single["layers.0.attention.qkv"],
        "layers.0.attention.out": single["layers.0.attention.out"],
        "layers.0.attention.to_out.0": own["layers.0.attention.to_out.0"],
        **{f"layers.0.attention.to.{x}": own[f"layers.0.attention.to_{x}"] for x in "qkv"},
    }
    lora = write_lora(tmp_path / "l.safetensors", SPELLINGS["ComfyUI, diffusion-pipe"], both)
    found = changes(plan_of(base_of("z-image", tmp_path), Step("lora", lora)))
    assert found.keys() == {f"layers.0.attention.{layer}.weight" for layer in ("qkv", "out")}
    for layer in ("qkv", "out"):
        up, down = single[f"layers.0.attention.{layer}"]
        np.testing.assert_array_equal(found[f"layers.0.attention.{layer}.weight"], up.astype(float) @ down)
    other = {**both, "layers.0.attention.to.q": (rnd(32, 2), rnd(2, 32))}
    with pytest.raises(AdapterError, match="the same layer"):
        plan_of(
            base_of("z-image", tmp_path),
            Step("lora", write_lora(tmp_path / "m.safetensors", SPELLINGS["ComfyUI, diffusion-pipe"], other)),
        )


def peft_pair(stem: str, size: int = 8) -> Arrays:
    return {f"{stem}.lora_A.weight": rnd(2, size), f"{stem}.lora_B.weight": rnd(size, 2)}


def test_the_alpha_of_peft_files_without_a_configuration(tmp_path: Path) -> None:
    tensors = peft_pair("base_model.model.transformer_blocks.0.attn.to_q", 16)
    named, lost = (put(tmp_path / f"{name}.safetensors", tensors) for name in ("style", "adapter_model"))
    base = base_of("flux", tmp_path)
    plan = plan_of(base, Step("lora", named))
    assert any("the rank is taken" in str(warning) for warning in plan.warnings)
    with pytest.raises(AdapterError, match=r"adapter_config\.json") as caught:
        open_adapter(lost)
    assert "alpha" in str(caught.value.hint)
    for alpha, scale in (("rank", 1.0), ("3", 1.5)):
        (module,) = open_adapter(lost, None, Interpretation(alpha=alpha)).modules.values()
        assert module.scale == scale
    with pytest.raises(ParamergeError, match="no such alpha"):
        Interpretation(alpha="half")


def test_heads_that_were_saved_whole(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    layer = "distilbert.transformer.layer.0.attention.q_lin"
    tensors = peft_pair(f"base_model.model.{layer}")
    tensors |= {"base_model.model.classifier.weight": rnd(2, 8), "base_model.model.classifier.bias": rnd(2)}
    put(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "modules_to_save": ["classifier"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    body = {f"{layer}.weight": np.zeros((8, 8), np.float32)}
    head = {"classifier.weight": np.zeros((2, 8), np.float32), "classifier.bias": np.zeros(2, np.float32)}
    found = baked(put(tmp_path / "base.safetensors", body | head), folder)
    for kind in ("weight", "bias"):
        np.testing.assert_array_equal(
            found[f"classifier.{kind}"], tensors[f"base_model.model.classifier.{kind}"]
        )
    with pytest.raises(UnmatchedError, match=r"land nowhere|lands nowhere"):
        plan_of(put(tmp_path / "headless.safetensors", body), Step("lora", folder))


PLACES = {
    "alone": "model.layers.0.mlp.up_proj",
    "before 4.52": "language_model.model.layers.0.mlp.up_proj",
    "since 4.52": "model.language_model.layers.0.mlp.up_proj",
}


@pytest.mark.parametrize("there", PLACES)
@pytest.mark.parametrize("here", PLACES)
def test_a_language_models_layers_wherever_they_are(here: str, there: str, tmp_path: Path) -> None:
    visual = "model.visual.blocks.0.attn.qkv" if there == "since 4.52" else "visual.blocks.0.attn.qkv"
    base = put(
        tmp_path / "base.safetensors",
        {f"{path}.weight": np.zeros((8, 8), np.float32) for path in (PLACES[there], visual)},
    )
    tensors = peft_pair(PLACES[here]) | peft_pair("visual.blocks.0.attn.qkv")
    plan = plan_of(base, Step("lora", put(tmp_path / "l.safetensors", tensors)))
    assert {edit.target.key for edit in plan.edits} == {f"{PLACES[there]}.weight", f"{visual}.weight"}


def test_layers_decide_and_metadata_advise(tmp_path: Path) -> None:
    """A FLUX LoRA that says SD1.5 is FLUX; in Chroma its layers fit, which is said; in Wan none does."""
    shapes = small.small_shapes("chroma")
    _, single = factors_of(namings("chroma", shapes)[0], shapes)
    some = {path: each for path, each in single.items() if "_blocks." in path}
    plain = write_lora(tmp_path / "plain.safetensors", SPELLINGS["sd-scripts"], some)
    lora = put(tmp_path / "l.safetensors", load_file(plain), {"ss_base_model_version": "sd_v1"})
    assert open_adapter(lora).architecture == "flux"
    chroma = put(tmp_path / "c.safetensors", load_file(plain), {"modelspec.architecture": "chroma/lora"})
    assert open_adapter(chroma).architecture == "chroma"
    base = base_of("chroma", tmp_path)
    plan = plan_of(base, Step("lora", lora))
    assert len(plan.steps[0].matched) >= len(some)
    assert any("was made for flux" in str(warning) for warning in plan.warnings)
    wan = base_of("wan", tmp_path)
    with pytest.raises(ArchitectureError) as caught:
        plan_of(wan, Step("lora", lora))
    assert "allow_other_model" in str(caught.value.hint)
    with pytest.raises(UnmatchedError):
        plan_of(wan, Step("lora", lora), allow_other_model=True)
