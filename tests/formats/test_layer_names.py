"""Names of layers in adapter files: Stable Diffusion's are known, other models' are kept as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from baking import plan_of
from checkpoint_files import blueprint, shapes_of, write_holes
from safetensors.torch import save_file

from paramerge.apply.steps import Step
from paramerge.formats import open_adapter
from paramerge.formats.layers import bare_layer, dotted_layer, stated_layer, strays, underscored
from paramerge.models.names import ModuleName

TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"unet.{TO_Q}", ("unet", TO_Q)),
        ("text_encoder.encoder.layers.0.mlp.fc1", ("text_encoder", "text_model.encoder.layers.0.mlp.fc1")),
        ("transformer.x_embedder", ("transformer", "x_embedder")),
        ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",) * 2,
        ("model.layers.0.mlp.up_proj", None),  # "model" is the beginning of a language model's own names
        ("vae.decoder.conv_in", None),
        ("transformer.a layer", None),
        ("transformer.", None),
        ("transformer..x", None),
    ],
)
def test_dotted_names_with_a_component(path: str, name: tuple[str, str] | str | None) -> None:
    expected = ModuleName(*path.split(".", 1)) if name == path else name and ModuleName(*name)
    assert dotted_layer(path) == expected


def test_a_component_that_is_always_stated() -> None:
    path = "model.model.layers.0.mlp.up_proj"
    assert stated_layer(path) == ModuleName("model", "model.layers.0.mlp.up_proj")
    assert stated_layer("transformer.x_embedder") == ModuleName("transformer", "x_embedder")
    assert stated_layer("vae.decoder.conv_in") is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (TO_Q, ("unet", TO_Q)),
        ("encoder.layers.0.mlp.fc1", ("text_encoder", "text_model.encoder.layers.0.mlp.fc1")),
        ("model.layers.0.mlp.up_proj", ("model", "model.layers.0.mlp.up_proj")),
        ("diffusion_model.blocks.0.ffn.0", ("transformer", "blocks.0.ffn.0")),
        ("model.diffusion_model.blocks.0.ffn.0", ("transformer", "blocks.0.ffn.0")),
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q", ("unet", TO_Q)),
        (f"diffusion_model.{TO_Q}", ("unet", TO_Q)),
        ("a layer", None),
    ],
)
def test_dotted_names_without_a_component(path: str, name: tuple[str, str] | None) -> None:
    assert bare_layer(path) == (name and ModuleName(*name))


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", ("unet", TO_Q)),
        ("lora_unet_double_blocks_0_img_attn_qkv", ("unet", "double_blocks_0_img_attn_qkv")),
        ("lora_transformer_x_embedder", ("transformer", "x_embedder")),
        ("lora_te3_encoder_block_0_layer_0_x_q", ("text_encoder_3", "encoder_block_0_layer_0_x_q")),
        ("lora_unet_", None),
        ("lora_x", None),
    ],
)
def test_names_without_dots(stem: str, name: tuple[str, str] | None) -> None:
    found = underscored(stem)
    assert (found and found.name) == (name and ModuleName(*name))


def test_beside_a_unet_only_known_layers_are_layers() -> None:
    unet = ModuleName("unet", TO_Q)
    encoder = ModuleName("text_encoder", "text_model.encoder.layers.0.mlp.fc1")
    wrong = {
        ModuleName("unet", "down_blocks.0.no_such"),
        ModuleName("model", "x"),
        ModuleName("transformer", "y"),
    }
    assert strays([unet, encoder, *wrong]) == wrong
    assert strays([encoder, *wrong]) == set()
    assert strays([ModuleName("unet", "time_embedding.linear_1"), *wrong]) == set()  # others have it, too


def test_a_stray_beside_a_unet_is_left_over(tmp_path: Path) -> None:
    up, down = torch.ones(640, 1), torch.ones(1, 640)
    stems = ("lora_unet_down_blocks_1_attentions_0_proj_in", "lora_unet_down_blocks_1_attentions_0_nothing")
    tensors = {
        f"{stem}.lora_{side}.weight": t.clone() for stem in stems for side, t in (("up", up), ("down", down))
    }
    save_file(tensors, tmp_path / "l.safetensors")
    adapter = open_adapter(tmp_path / "l.safetensors")
    assert [str(name) for name in adapter.modules] == ["unet.down_blocks.1.attentions.0.proj_in"]
    assert {key for left in adapter.leftovers for key in left.keys} == {k for k in tensors if "nothing" in k}


def test_comfyuis_names_of_a_stable_diffusion(tmp_path: Path) -> None:
    """ComfyUI saves the LoRA of an SDXL UNet under the single file's names, behind ``diffusion_model.``."""
    shapes = shapes_of(blueprint("sdxl", 16).component("unet"))
    path = write_holes(tmp_path / "unet.safetensors", shapes)
    width = shapes[f"{TO_Q}.weight"][0]
    stem = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{stem}.lora_up.weight": torch.ones(width, 1), f"{stem}.lora_down.weight": torch.ones(1, width)},
        tmp_path / "l.safetensors",
    )
    plan = plan_of(path, Step("lora", tmp_path / "l.safetensors"))
    assert plan.steps[0].matched == (ModuleName("unet", TO_Q),)
