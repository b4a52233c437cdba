"""UNets that are a published one with blocks left out or added: known by their structure, at any width."""

from __future__ import annotations

from dataclasses import replace

import pytest
from checkpoint_files import blueprint

from paramerge.models.architecture import detect_architecture
from paramerge.models.blueprint_inventory import unet_shapes
from paramerge.models.registry import family_of

Shape = tuple[int, ...]


def unet(architecture: str, shrink: int = 16, **changes: object) -> dict[str, Shape]:
    return dict(unet_shapes(replace(blueprint(architecture, shrink).unet, **changes)))  # type: ignore[arg-type]


def without_middle_attention(shapes: dict[str, Shape], whole: bool = False) -> dict[str, Shape]:
    start = "mid_block." if whole else "mid_block.attentions."
    return {key: shape for key, shape in shapes.items() if not key.startswith(start)}


def relatives() -> dict[str, dict[str, Shape]]:
    channels = blueprint("sd15", 16).unet.channels
    classes = {"class_embedding.linear_1.weight": (80, 128), "class_embedding.linear_2.weight": (80, 80)}
    return {
        "sdxl-ssd-1b": without_middle_attention(unet("sdxl", depths=(0, 2, 4))),
        "sdxl-vega": without_middle_attention(unet("sdxl", depths=(0, 1, 2))),
        "sdxl-koala-700m": without_middle_attention(
            unet("sdxl", depths=(0, 2, 5), layers_per_block=1), whole=True
        ),
        "sdxl-koala-1b": unet("sdxl", depths=(0, 2, 6), mid_depth=6, layers_per_block=1),
        "sd15-small": unet("sd15", layers_per_block=1),
        "sd15-small-without-middle": without_middle_attention(unet("sd15", layers_per_block=1), whole=True),
        "sd15-tiny": without_middle_attention(
            unet("sd15", layers_per_block=1, channels=channels[:3], depths=(1, 1, 1)), whole=True
        ),
        "sd2-unclip": unet("sd2") | classes,
        "sdxl-kolors": unet("sdxl") | {"encoder_hid_proj.weight": (128, 256)},
        "sd15-pix2pix": unet("sd15") | {"conv_in.weight": (20, 8, 3, 3)},
        "sd15-inpainting": unet("sd15") | {"conv_in.weight": (20, 9, 3, 3)},
    }


@pytest.mark.parametrize("name", relatives())
def test_relatives_have_names(name: str) -> None:
    assert detect_architecture(relatives()[name]).name == name
    assert family_of(name) == name.partition("-")[0]


def test_the_upscaler() -> None:
    shapes = unet("sd2", depths=(0, 1, 1, 1)) | {
        "class_embedding.weight": (1000, 80),
        "conv_in.weight": (20, 7, 3, 3),
    }
    assert detect_architecture(shapes).name == "sd2-upscaler"
