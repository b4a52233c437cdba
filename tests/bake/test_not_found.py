"""Layers that the base does not have are an error whatever is selected; so are rows of unknown order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from baking import plan_of

from paramerge.apply.steps import Step
from paramerge.convert.convert import convert
from paramerge.convert.request import ConvertOptions
from paramerge.errors import FamilyError, UnmatchedError, UsageError
from paramerge.files.header import read_header
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.merge.request import Input

D = 8
Z_IMAGE = {
    "cap_embedder.1.weight": (D, 6),
    "x_embedder.weight": (D, 4),
    "layers.0.attention.qkv.weight": (3 * D, D),
    "layers.0.attention.out.weight": (D, D),
    **{f"layers.0.feed_forward.w{i}.weight": (D, D) for i in (1, 2, 3)},
}
LAYERS = ("attention_to_gate", "feed_forward_w1")


def lora(
    path: Path, stems: tuple[str, ...], rows: int = D, ends: tuple[str, str] = ("lora_up", "lora_down")
) -> Path:
    up, down = (f"{end}.weight" for end in ends)
    tensors = {f"{stem}.{up}": np.ones((rows, 2), np.float32) for stem in stems}
    tensors |= {f"{stem}.{down}": np.ones((2, D), np.float32) for stem in stems}
    write_safetensors(path, tensors, {})
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors = {f"model.diffusion_model.{key}": np.ones(shape, np.float32) for key, shape in Z_IMAGE.items()}
    write_safetensors(tmp_path / "base.safetensors", tensors, {})
    return tmp_path / "base.safetensors"


@pytest.mark.parametrize(
    "only", [(), ("transformer",), ("transformer.*feed*",), ("unet",), ("unet.layers_0_attention_to_gate",)]
)
def test_a_layer_that_is_not_found_is_an_error_whatever_is_selected(
    only: tuple[str, ...], base: Path, tmp_path: Path
) -> None:
    """kohya says ``unet`` for a transformer: its layers are of the model that is there."""
    path = lora(tmp_path / "l.safetensors", tuple(f"lora_unet_layers_0_{name}" for name in LAYERS))
    with pytest.raises(UnmatchedError) as caught:
        plan_of(base, Step("lora", path), only=only)
    assert "attention_to_gate" in str(caught.value.found)
    assert "only" not in str(caught.value.hint)


def test_layers_of_a_model_that_the_base_has_not_are_excluded(base: Path, tmp_path: Path) -> None:
    stems = ("lora_unet_layers_0_feed_forward_w1", "lora_te1_text_model_encoder_layers_0_mlp_fc1")
    path = lora(tmp_path / "l.safetensors", stems)
    with pytest.raises(UnmatchedError) as caught:
        plan_of(base, Step("lora", path))
    assert 'only="transformer"' in str(caught.value.hint)
    (step,) = plan_of(base, Step("lora", path), only=("transformer",)).steps
    assert [len(step.matched), len(step.excluded), len(step.unmatched)] == [1, 1, 0]


def minimax(tmp_path: Path, layer: str) -> tuple[Path, Path]:
    """A folder of that model, and a LoRA on one of its layers."""
    folder = tmp_path / "base"
    folder.mkdir()
    shapes = {"blocks.0.attn.qkv_proj.weight": (3 * D, D), "blocks.0.attn.out_proj.weight": (D, D)}
    tensors = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", tensors, {})
    (folder / "config.json").write_text(json.dumps({"model_type": "minimax_h3", "num_attention_heads": 2}))
    rows = shapes[f"{layer}.weight"][0]
    return folder, lora(tmp_path / "l.safetensors", (f"diffusion_model.{layer}",), rows, ("lora_B", "lora_A"))


def test_rows_of_unknown_order_are_refused(tmp_path: Path) -> None:
    folder, path = minimax(tmp_path, "blocks.0.attn.qkv_proj")
    with pytest.raises(FamilyError, match="order of the rows"):
        plan_of(folder, Step("lora", path))


def test_other_layers_of_that_model_are_baked(tmp_path: Path) -> None:
    folder, path = minimax(tmp_path, "blocks.0.attn.out_proj")
    assert len(plan_of(folder, Step("lora", path)).steps[0].matched) == 1


def to_diffusers(path: Path, output: Path) -> None:
    convert([Input(path)], [open_adapter(path)], output, ConvertOptions("diffusers"))


@pytest.mark.parametrize("stem", ["diffusion_model.stages.0.mix.q", "stages.0.mix.0"])
def test_names_that_diffusers_does_not_have_are_not_written(stem: str, tmp_path: Path) -> None:
    path = lora(tmp_path / "l.safetensors", (stem,), ends=("lora_B", "lora_A"))
    with pytest.raises(UsageError, match="names for layers of this adapter are not known"):
        to_diffusers(path, tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()


def test_wans_names_are_written_as_diffusers_has_them(tmp_path: Path) -> None:
    stems = tuple(f"diffusion_model.blocks.0.{layer}" for layer in ("self_attn.q", "cross_attn.k", "ffn.0"))
    to_diffusers(lora(tmp_path / "l.safetensors", stems), tmp_path / "o.safetensors")
    written = {key.removesuffix(".lora_A.weight") for key in read_header(tmp_path / "o.safetensors").tensors}
    layers = ("attn1.to_q", "attn2.to_k", "ffn.net.0.proj")
    assert {stem for stem in written if "lora_B" not in stem} == {f"transformer.blocks.0.{x}" for x in layers}


@pytest.mark.parametrize(
    "stem",
    [
        "transformer.blocks.0.attn1.to_q",
        "diffusion_model.transformer_blocks.0.attn.to_q",  # FLUX as diffusers has it
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q",
    ],
)
def test_names_that_it_has_are(stem: str, tmp_path: Path) -> None:
    path = lora(tmp_path / "l.safetensors", (stem,), ends=("lora_B", "lora_A"))
    to_diffusers(path, tmp_path / "o.safetensors")
    assert len(open_adapter(tmp_path / "o.safetensors").modules) == 1
