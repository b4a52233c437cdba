"""Models other than Stable Diffusion's UNets, recognised by the keys that diffusers' classes give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import ARCHITECTURES, Shape, blueprint, shapes_of, write_folder, write_holes

from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError
from paramerge.models.model_names import looks_like, recognise
from paramerge.models.names import ModuleName

SMALL: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "Flux2Transformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "ChromaTransformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "SD3Transformer2DModel": {"num_layers": 1},
    "AuraFlowTransformer2DModel": {"num_mmdit_layers": 1, "num_single_dit_layers": 1},
    "QwenImageTransformer2DModel": {"num_layers": 1},
    "WanTransformer3DModel": {"num_layers": 1},
    "HunyuanVideoTransformer3DModel": {"num_layers": 1, "num_single_layers": 1},
    "ZImageTransformer2DModel": {"n_layers": 1},
    "Lumina2Transformer2DModel": {"num_layers": 1},
    "PixArtTransformer2DModel": {"num_layers": 1},
    "CogVideoXTransformer3DModel": {"num_layers": 1},
    "LTXVideoTransformer3DModel": {"num_layers": 1},
    "MochiTransformer3DModel": {"num_layers": 1},
    "UNetSpatioTemporalConditionModel": {},
}
NAMES = {
    "FluxTransformer2DModel": "flux",
    "Flux2Transformer2DModel": "flux2",
    "ChromaTransformer2DModel": "chroma",
    "SD3Transformer2DModel": "sd3",
    "AuraFlowTransformer2DModel": "auraflow",
    "QwenImageTransformer2DModel": "qwen-image",
    "WanTransformer3DModel": "wan",
    "HunyuanVideoTransformer3DModel": "hunyuan-video",
    "ZImageTransformer2DModel": "z-image",
    "Lumina2Transformer2DModel": "lumina2",
    "LTXVideoTransformer3DModel": "ltx",
    "UNetSpatioTemporalConditionModel": "svd",
}
"""Of the others the class itself is the name, where a configuration tells it."""

BESIDE = {
    "ControlNetModel": {},
    "FluxControlNetModel": {"num_layers": 1, "num_single_layers": 1},
    "SD3ControlNetModel": {"num_layers": 1},
    "MotionAdapter": {},
    "AutoencoderKL": {},
}


def keys_of(name: str, options: dict[str, Any]) -> dict[str, Shape]:
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, name)(**options)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_of_diffusers_own_model(name: str, tmp_path: Path) -> None:
    """Named, and every Linear and convolution reached by the name that diffusers has for it."""
    shapes = keys_of(name, SMALL[name])
    write_holes(tmp_path / "diffusion_pytorch_model.safetensors", shapes, "BF16")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    base = open_base(tmp_path)
    assert base.architecture == NAMES.get(name, name)
    component = "unet" if "UNet" in name else "transformer"
    layers = {
        ModuleName(component, key.removesuffix(".weight"))
        for key, shape in shapes.items()
        if len(shape) > 1 and key.endswith(".weight")
    }
    assert base.files[0].targets.keys() == layers
    assert not any(target.rows or target.transposed for target in base.files[0].targets.values())


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_built_of_a_models_blocks_is_no_model(name: str, tmp_path: Path) -> None:
    shapes = keys_of(name, BESIDE[name])
    path = write_holes(tmp_path / "diffusion_pytorch_model.safetensors", shapes)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    named = {"MotionAdapter": "AnimateDiff", "AutoencoderKL": "VAE"}.get(name, "ControlNet")
    for given in (path, tmp_path):
        with pytest.raises(CheckpointError, match=named):
            open_base(given)


QKV = "double_blocks.0.img_attn.qkv"
PUBLISHED = [
    ("flux", [f"{QKV}.weight", "single_blocks.0.linear1.weight", "vector_in.in_layer.weight"]),
    ("flux2", [f"{QKV}.weight", "double_stream_modulation_img.lin.weight"]),
    ("sd3", ["joint_blocks.0.x_block.attn.qkv.weight", "pos_embed"]),
    ("auraflow", ["double_layers.0.attn.w2q.weight", "positional_encoding"]),
    ("qwen-image", ["transformer_blocks.0.img_mod.1.weight", "img_in.weight"]),
    ("pixart-or-sana", ["blocks.0.cross_attn.q_linear.weight"]),
    ("hunyuan-dit", ["blocks.0.default_modulation.1.weight"]),
    ("hunyuan-video", ["txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight"]),
    ("wan", ["blocks.0.self_attn.norm_q.weight", "patch_embedding.weight"]),
    ("z-image", ["cap_embedder.0.weight", "layers.0.attention.qkv.weight"]),
    ("lumina2", ["cap_embedder.0.weight", "layers.0.adaLN_modulation.1.weight"]),
    ("lumina-or-z-image", ["cap_embedder.0.weight", "layers.0.attention.wq.weight"]),
    ("stable-cascade", ["down_blocks.1.0.channelwise.0.weight", "up_blocks.1.0.channelwise.0.weight"]),
    ("svd", ["input_blocks.1.1.time_stack.0.attn1.to_q.weight", "output_blocks.0.0.emb_layers.1.weight"]),
    ("diffusion-transformer", ["transformer_blocks.0.scale_shift_table"]),
    ("language-model", ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"]),
]


@pytest.mark.parametrize(("name", "keys"), PUBLISHED)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_names_of_published_single_files(name: str, keys: list[str], prefix: str, tmp_path: Path) -> None:
    shapes = {prefix + key: (8, 2) if "linear1" in key else (6, 2) for key in [*keys, "first.weight"]}
    base = open_base(write_holes(tmp_path / "file.safetensors", shapes))
    assert base.architecture == name
    assert base.layout == ("unet-file" if name == "svd" else "model-file")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_stable_diffusion_is_taken_for_another_model(architecture: str, tmp_path: Path) -> None:
    plan = blueprint(architecture, 16)
    for specs in (plan.single_file(), *(plan.component(name) for name in plan.components)):
        assert recognise(shapes_of(specs)) is None
    assert open_base(write_folder(tmp_path / "b", architecture)).architecture == architecture


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("down_blocks.0.attentions.0.proj_in", "a Stable Diffusion UNet"),
        ("double_blocks_3_img_attn_qkv", "FLUX or a model made from it"),
        ("single_transformer_blocks.3.proj_mlp", "FLUX or a model made from it"),
        ("joint_blocks.0.x_block.attn.qkv", "Stable Diffusion 3"),
        ("transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
        ("transformer_blocks.0.attn.to_q", "a diffusion transformer such as FLUX, SD3 or Qwen-Image"),
        ("encoder.block.0.layer.0.SelfAttention.q", "a T5 text encoder"),
        ("model.layers.0.self_attn.q_proj", "a language model"),
        ("transformer.h.0.attn.c_attn", "a language model"),
        ("blocks.0.cross_attn.q", "a video transformer such as Wan"),
        ("stage.0.mix", None),
    ],
)
def test_what_an_adapters_names_remind_of(path: str, title: str | None) -> None:
    assert looks_like([path, "x"]) == title
