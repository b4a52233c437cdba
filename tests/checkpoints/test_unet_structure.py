"""Reading the structure of a UNet off its keys: what is missing is said, not guessed."""

from __future__ import annotations

import pytest
from checkpoint_files import ARCHITECTURES, blueprint, shapes_of

from paramerge.errors import CheckpointError
from paramerge.models.unet_keys import LDM_UNET_PREFIX
from paramerge.models.unet_structure import infer_structure, standard_structure


def keys_of(architecture: str, naming: str) -> list[str]:
    """The UNet's keys without prefix."""
    if naming == "diffusers":
        return list(shapes_of(blueprint(architecture).component("unet")))
    specs = blueprint(architecture).single_file()
    return [s.key.removeprefix(LDM_UNET_PREFIX) for s in specs if s.key.startswith(LDM_UNET_PREFIX)]


@pytest.mark.parametrize("naming", ["ldm", "diffusers"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_is_read_off_either_naming(architecture: str, naming: str) -> None:
    assert infer_structure(keys_of(architecture, naming)) == blueprint(architecture).unet.structure


def test_label_embeddings_of_a_model_with_fine_transformers_are_class_embeddings() -> None:
    keys = [*keys_of("sd2", "ldm"), "label_emb.0.0.weight", "label_emb.0.2.weight"]
    assert infer_structure(keys).label == "class_embedding"
    keys = [*keys_of("sd2", "diffusers"), "class_embedding.linear_1.weight"]
    assert infer_structure(keys).label == "class_embedding"


def test_a_middle_without_transformer_is_seen() -> None:
    ldm = [k for k in keys_of("sdxl", "ldm") if not k.startswith("middle_block.1.")]
    ldm = [k.replace("middle_block.2.", "middle_block.1.") for k in ldm]
    diffusers = [k for k in keys_of("sdxl", "diffusers") if not k.startswith("mid_block.attentions.")]
    assert infer_structure(ldm) == infer_structure(diffusers)
    assert not infer_structure(ldm).mid_attention


@pytest.mark.parametrize(
    ("naming", "missing", "where"),
    [
        ("ldm", "input_blocks.4.", "input_blocks.4"),
        ("ldm", "output_blocks.0.", "output_blocks.0"),
        ("ldm", "output_blocks.11.", "the UNet's blocks"),
        ("ldm", "input_blocks.11.", "the UNet's blocks"),
        ("ldm", "output_blocks.", "output_blocks.0"),
        ("diffusers", "down_blocks.1.resnets.0.", "down_blocks.1"),
        ("diffusers", "down_blocks.1.", "down_blocks.1"),
        ("diffusers", "up_blocks.3.", "the UNet's blocks"),
        ("diffusers", "up_blocks.2.resnets.2.", "the UNet's blocks"),
        ("diffusers", "down_blocks.0.downsamplers.", "the UNet's blocks"),
    ],
)
def test_missing_blocks_are_refused(naming: str, missing: str, where: str) -> None:
    keys = [key for key in keys_of("sd15", naming) if not key.startswith(missing)]
    with pytest.raises(CheckpointError, match="the UNet is incomplete") as caught:
        infer_structure(keys)
    assert caught.value.where == where


@pytest.mark.parametrize("keys", [[], ["alpha", "beta"], ["time_embed.0.weight"]])
def test_keys_that_are_no_unet_are_refused(keys: list[str]) -> None:
    with pytest.raises(CheckpointError, match="incomplete"):
        infer_structure(keys)


def test_a_standard_structure_counts_the_resamplers_between_levels() -> None:
    structure = standard_structure((True, False), layers_per_block=3)
    assert [level.resampler for level in structure.down] == [True, False]
    assert [len(level.attentions) for level in structure.up] == [4, 4]
