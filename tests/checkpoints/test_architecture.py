"""Architectures are told apart by their blocks, at any width and in any layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from blueprints import sd15
from checkpoint_files import ARCHITECTURES, Shape, blueprint, shapes_of, write_folder, write_holes

from paramerge.checkpoints.layout import open_base
from paramerge.models.architecture import detect_architecture
from paramerge.models.blueprint_inventory import UNetConfig, unet_shapes
from paramerge.models.unet_facts import unet_facts


def unet(architecture: str, shrink: int = 1) -> dict[str, Shape]:
    return shapes_of(blueprint(architecture, shrink).component("unet"))


@pytest.mark.parametrize("shrink", [1, 2, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_tell_the_architecture_and_widths_tell_whether_it_is_the_published_one(
    architecture: str, shrink: int
) -> None:
    found = detect_architecture(unet(architecture, shrink))
    assert found.name == architecture
    assert found.true_dimensions == (shrink == 1)


@pytest.mark.parametrize(
    ("channels", "suffix"), [(9, "-inpainting"), (8, "-pix2pix"), (5, "-depth"), (7, "-7-channels")]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_more_input_channels_are_a_variant_of_the_architecture(
    architecture: str, channels: int, suffix: str
) -> None:
    shapes = unet(architecture)
    shapes["conv_in.weight"] = (shapes["conv_in.weight"][0], channels, 3, 3)
    found = detect_architecture(shapes)
    assert found.name == architecture + suffix
    assert found.true_dimensions


def test_latents_of_another_width_are_no_pix2pix() -> None:
    shapes = unet("sd15")
    shapes["conv_in.weight"] = (shapes["conv_in.weight"][0], 8, 3, 3)
    shapes["conv_out.weight"] = (8, *shapes["conv_out.weight"][1:])
    assert detect_architecture(shapes).name == "sd15-8-channels"


def test_the_inpainting_blueprint_is_told_apart() -> None:
    specs = sd15(16, inpainting=True).component("unet")
    assert detect_architecture(shapes_of(specs)).name == "sd15-inpainting"


@pytest.mark.parametrize("shrink", [1, 16])
def test_sd2_differs_from_sd15_by_how_its_transformers_project(shrink: int) -> None:
    assert unet_facts(unet("sd15", shrink)).linear_projection is False
    assert unet_facts(unet("sd2", shrink)).linear_projection is True


def variants_of_sdxl() -> dict[str, UNetConfig]:
    config = blueprint("sdxl").unet
    return {
        "shallower (SSD-1B, Segmind Vega)": replace(config, depths=(0, 2, 4)),
        "shallow in the middle": replace(config, mid_depth=1),
        "without micro-conditioning": replace(config, time_ids=0),
        "transformers at the finest level": replace(config, depths=(1, 2, 10)),
        "four levels": replace(config, channels=(320, 640, 1280, 1280), depths=(0, 2, 10, 10)),
        "three resnets a level": replace(config, layers_per_block=3),
    }


@pytest.mark.parametrize("name", variants_of_sdxl())
def test_other_blocks_are_unknown_and_not_taken_for_the_nearest_architecture(name: str) -> None:
    found = detect_architecture(dict(unet_shapes(variants_of_sdxl()[name])))
    assert found.name == "unknown"
    assert not found.true_dimensions


def test_a_class_embedding_makes_it_another_model() -> None:
    classes: dict[str, Shape] = {"class_embedding.linear_1.weight": (1280, 2048)}
    assert detect_architecture(unet("sd2") | classes).name == "sd2-unclip"
    assert detect_architecture(unet("sdxl") | classes).name == "unknown"


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("add_embedding.linear_1.weight", (1280, 2560)),
        ("down_blocks.0.resnets.0.conv1.weight", (384, 320, 3, 3)),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", (640, 1024)),
    ],
)
def test_another_width_is_not_the_published_model(key: str, shape: Shape) -> None:
    shapes = unet("sdxl")
    assert key in shapes
    found = detect_architecture(shapes | {key: shape})
    assert found.name == "sdxl"
    assert not found.true_dimensions


@pytest.mark.parametrize("shrink", [1, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layout_of_a_model_has_the_same_architecture(
    architecture: str, shrink: int, tmp_path: Path
) -> None:
    plan = blueprint(architecture, shrink)
    single = shapes_of(plan.single_file())
    paths = [
        write_holes(tmp_path / "single.safetensors", single),
        write_holes(
            tmp_path / "ldm.safetensors", {k: v for k, v in single.items() if ".diffusion_model." in k}
        ),
        write_holes(tmp_path / "diffusers.safetensors", shapes_of(plan.component("unet"))),
        write_folder(tmp_path / "folder", architecture, shrink),
    ]
    bases = [open_base(path) for path in paths]
    assert {base.architecture for base in bases} == {architecture}
    assert {base.true_dimensions for base in bases} == {shrink == 1}
    layouts = [base.layout for base in bases]
    assert layouts == ["single-file", "unet-file", "unet-file", "diffusers-folder"]
