"""SD2, the refiner and variants with more input channels: told apart, and baked like SD1.5 and SDXL."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from baking import add, load, lora_file, para_file, plan_of, random_bases, random_factors, remove, shapes_of
from blueprints import Blueprint, sd2, sd15, sdxl_refiner
from checkpoint_files import blueprint, write_holes
from checkpoint_files import shapes_of as spec_shapes
from random_checkpoint import write_random_checkpoint

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.errors import ArchitectureError, ShapeError

VARIANTS = {
    "sd2": lambda: sd2(16, vocabulary=64),
    "sd15-inpainting": lambda: sd15(16, vocabulary=64, inpainting=True),
    "sdxl-refiner": lambda: sdxl_refiner(16, vocabulary=64),
}
KINDS = (
    "attn2.to_k",
    "proj_in",
    "resnets.0.conv1",
    "conv_in",
    "self_attn.k_proj",
    "mlp.fc2",
    "text_projection",
)


def chosen(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return [layer for layer in shapes if layer.endswith(KINDS)]


def unet_by_diffusers(path: Path, config: dict) -> dict[str, np.ndarray]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    ldm = {key: torch.from_numpy(array.copy()) for key, array in load(path).tensors.items()}
    return {key: value.numpy() for key, value in convert_ldm_unet_checkpoint(ldm, config).items()}


def encoder_by_diffusers(path: Path, plan: Blueprint) -> dict[str, np.ndarray]:
    """The text encoder of a single file by diffusers' converters, with ``text_model.`` before its names."""
    from diffusers.loaders.single_file_utils import (
        convert_ldm_clip_checkpoint,
        convert_open_clip_checkpoint,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    (encoder,) = plan.encoders
    ldm = {key: torch.from_numpy(array.copy()) for key, array in load(path).tensors.items()}
    if not encoder.config.openclip:
        found = convert_ldm_clip_checkpoint(ldm)
    else:
        own = encoder.config
        config = CLIPTextConfig(
            hidden_size=own.width,
            num_hidden_layers=own.layers - own.unused_layers,
            projection_dim=own.projection,
            vocab_size=own.vocabulary,
            num_attention_heads=1,
        )
        with torch.device("meta"):
            model = CLIPTextModelWithProjection(config)
        found = convert_open_clip_checkpoint(model, ldm, prefix=encoder.prefix)
    return {
        key if key.startswith("text_") else f"text_model.{key}": value.numpy() for key, value in found.items()
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_single_file_and_folder_get_the_reference(name: str, tmp_path: Path) -> None:
    """A PaRa and a LoRA on the UNet and its text encoder, in float32 against NumPy in float64."""
    plan = VARIANTS[name]()
    folder, single = tmp_path / "folder", tmp_path / "single.safetensors"
    write_random_checkpoint(plan, folder, 1, layout="diffusers-folder", dtype="F32")
    write_random_checkpoint(plan, single, 1, dtype="F32")
    assert {open_base(path).architecture for path in (folder, single)} == {name}
    shapes = shapes_of(folder)
    layers = chosen(shapes)
    encoder = plan.encoders[0].component
    assert {layer.partition(".")[0] for layer in layers} == {"unet", encoder}
    bases = random_bases(shapes, layers, 2)
    para = para_file(tmp_path / "p.safetensors", bases, name.removesuffix("-inpainting"), dtype="F32")
    # a LoRA with layers of the second encoder is taken for SDXL's where no width says otherwise
    adapted = [layer for layer in layers if not layer.startswith("text_encoder_2")]
    factors = random_factors(shapes, adapted, 2)
    lora = lora_file(tmp_path / "l.safetensors", factors, 1.0, dtype="F32")
    steps = (Step("para", para), Step("lora", lora, 0.5))
    bake(plan_of(folder, *steps), tmp_path / "out")
    bake(plan_of(single, *steps), tmp_path / "out.safetensors")

    config = json.loads((folder / "unet" / "config.json").read_text())
    found = {
        "unet": unet_by_diffusers(tmp_path / "out.safetensors", config),
        encoder: encoder_by_diffusers(tmp_path / "out.safetensors", plan),
    }
    for component in ("unet", encoder):
        before, after = load(folder / component).tensors, load(tmp_path / "out" / component).tensors
        for key, array in after.items():
            if key.endswith("position_ids"):
                continue
            layer = f"{component}.{key.removesuffix('.weight')}"
            expected = before[key].astype(np.float64)
            if layer in bases:
                expected = remove(expected, bases[layer].astype(np.float32))
            if layer in factors:
                expected = add(expected, *factors[layer], 0.5 / 2)
            for result in (array, found[component][key]):
                gap = np.linalg.norm(result - expected)
                assert gap <= 2.0**-22 * np.linalg.norm(expected), layer


def test_the_last_layer_that_sd2_does_not_read_stays(tmp_path: Path) -> None:
    """Single files have 24 layers of the text encoder, folders 23: an adapter made on a folder lacks one."""
    plan = sd2(16, vocabulary=64)
    single = tmp_path / "s.safetensors"
    write_random_checkpoint(plan, single, 1)
    layer = "text_encoder.text_model.encoder.layers.22.self_attn.v_proj"
    shapes = shapes_of(single)
    assert layer.replace(".22.", ".23.") in shapes
    para = para_file(tmp_path / "p.safetensors", random_bases(shapes, [layer], 2), "sd2")
    bake(plan_of(single, Step("para", para)), tmp_path / "out.safetensors")
    before, after = load(single).raw, load(tmp_path / "out.safetensors").raw
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight"}
    width = shapes[layer][0]
    key = next(iter(changed))
    kept = 2 * width * width * 2  # q and k, in bytes
    assert before[key][:kept] == after[key][:kept]


@pytest.mark.parametrize(
    ("channels", "name"), [(9, "inpainting"), (8, "pix2pix"), (5, "depth"), (7, "7-channels")]
)
@pytest.mark.parametrize("architecture", ["sd15", "sd2", "sdxl"])
def test_more_input_channels_take_the_adapters_of_the_plain_model(
    channels: int, name: str, architecture: str, tmp_path: Path
) -> None:
    shapes = spec_shapes(blueprint(architecture, 16).component("unet"))
    width = shapes["conv_in.weight"][0]
    shapes["conv_in.weight"] = (width, channels, 3, 3)
    path = write_holes(tmp_path / "unet.safetensors", shapes)
    assert open_base(path).architecture == f"{architecture}-{name}"
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    reached = shapes_of(path)
    bases = random_bases(reached, [layer, "unet.conv_in"], 2)
    para = para_file(tmp_path / "p.safetensors", bases, architecture)
    assert len(plan_of(path, Step("para", para)).edits) == 2
    # a LoRA on the first convolution of the plain model has too few columns
    factors = random_factors(reached | {"unet.conv_in": (width, 4, 3, 3)}, ["unet.conv_in"], 2)
    lora = lora_file(tmp_path / "l.safetensors", factors)
    with pytest.raises(ShapeError, match="does not fit") as caught:
        plan_of(path, Step("lora", lora))
    assert f"{width} x {channels * 9}" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("made_for", "base"),
    [("sd15", "sd2"), ("sd2", "sd15"), ("sdxl", "sdxl-refiner"), ("sdxl-refiner", "sdxl")],
)
def test_architectures_do_not_take_each_others_adapters(made_for: str, base: str, tmp_path: Path) -> None:
    path = write_holes(tmp_path / "u.safetensors", spec_shapes(blueprint(base, 16).component("unet")))
    layer = "unet.mid_block.resnets.0.conv1"
    para = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(path), [layer], 2), made_for)
    with pytest.raises(ArchitectureError, match=f"made for {made_for}, the base is {base}"):
        plan_of(path, Step("para", para))
