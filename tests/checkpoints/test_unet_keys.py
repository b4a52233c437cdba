"""The map between the UNet's names in single files and in diffusers, against diffusers' own converter."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from checkpoint_files import ARCHITECTURES, blueprint, configs, meta_model, parameter_shapes, shapes_of
from hypothesis import given
from hypothesis import strategies as st
from strategies import law

from paramerge.models.unet_keys import (
    LDM_UNET_PREFIX,
    UNetKeyMap,
    is_diffusers_unet_key,
    is_ldm_unet_key,
    ldm_to_diffusers,
)
from paramerge.models.unet_structure import Level, UNetStructure, infer_structure, standard_structure

COUNTS = {"sd15": 686, "sd2": 686, "sdxl": 1680, "sdxl-refiner": 1220}


def ldm_keys(architecture: str) -> list[str]:
    """The UNet's keys of the single file, without prefix."""
    specs = blueprint(architecture).single_file()
    return [s.key.removeprefix(LDM_UNET_PREFIX) for s in specs if s.key.startswith(LDM_UNET_PREFIX)]


def converted_by_diffusers(keys: list[str], architecture: str) -> dict[str, str]:
    """Single-file key by diffusers key, found out by giving each tensor a number of its own."""
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    tagged = {LDM_UNET_PREFIX + key: torch.full((1,), float(i)) for i, key in enumerate(keys)}
    converted = convert_ldm_unet_checkpoint(tagged, configs(architecture)["unet"])
    return {key: keys[int(tensor.item())] for key, tensor in converted.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_the_converter_of_diffusers_on_tagged_values(architecture: str) -> None:
    keys = ldm_keys(architecture)
    assert len(keys) == COUNTS[architecture]
    theirs = converted_by_diffusers(keys, architecture)
    names = UNetKeyMap(infer_structure(keys))
    assert {names.to_diffusers(key): key for key in keys} == theirs
    assert {key: names.to_ldm(key) for key in theirs} == theirs


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_agrees_with_the_converter_on_the_keys_of_real_files(architecture: str, shared_dir: Path) -> None:
    path = shared_dir / "fixtures" / "inventories" / f"{architecture}_single_file.json.gz"
    inventory = json.loads(gzip.decompress(path.read_bytes()))
    keys = [k.removeprefix(LDM_UNET_PREFIX) for k in inventory if k.startswith(LDM_UNET_PREFIX)]
    assert len(keys) == COUNTS[architecture]
    names = UNetKeyMap(infer_structure(keys))
    assert {names.to_diffusers(key): key for key in keys} == converted_by_diffusers(keys, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reaches_exactly_the_parameters_and_shapes_of_the_model_of_diffusers(architecture: str) -> None:
    model = parameter_shapes(meta_model(architecture, "unet"))
    single = shapes_of(blueprint(architecture).single_file())
    names = UNetKeyMap(infer_structure(ldm_keys(architecture)))
    mapped = {names.to_diffusers(key): single[LDM_UNET_PREFIX + key] for key in ldm_keys(architecture)}
    assert mapped == model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_namings_are_recognised_and_told_apart(architecture: str) -> None:
    theirs = parameter_shapes(meta_model(architecture, "unet"))
    assert all(is_ldm_unet_key(key) and not is_diffusers_unet_key(key) for key in ldm_keys(architecture))
    assert all(is_diffusers_unet_key(key) and not is_ldm_unet_key(key) for key in theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_arithmetic_on_the_numbers_equals_the_map_of_the_structure(architecture: str) -> None:
    names = UNetKeyMap(infer_structure(ldm_keys(architecture)))
    for key in ldm_keys(architecture):
        assert ldm_to_diffusers(key) == names.to_diffusers(key)


@pytest.mark.parametrize(
    "path", ["input_blocks.4.2.proj_in", "conditioner.0.1", "output_blocks.x.1", "middle_block", ""]
)
def test_a_name_that_is_no_layer_has_no_other_name(path: str) -> None:
    assert ldm_to_diffusers(path) is None


def test_a_block_that_the_structure_lacks_has_no_other_name() -> None:
    names = UNetKeyMap(standard_structure((False, True, True)))
    assert names.to_diffusers("input_blocks.1.1.proj_in.weight") is None
    assert names.to_ldm("down_blocks.0.attentions.0.proj_in.weight") is None
    assert names.to_diffusers("output_blocks.9.0.in_layers.0.weight") is None
    assert names.to_diffusers("input_blocks.1.0.unknown_layer.weight") is None


levels = st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=4)


@st.composite
def structures(draw: st.DrawFn) -> UNetStructure:
    """Any UNet whose way up reads what its way down left, of any attention pattern."""
    down = draw(levels)
    last = len(down) - 1
    up = [draw(st.lists(st.booleans(), min_size=len(x) + 1, max_size=len(x) + 1)) for x in reversed(down)]
    return UNetStructure(
        tuple(Level(tuple(x), i < last) for i, x in enumerate(down)),
        tuple(Level(tuple(x), i < last) for i, x in enumerate(up)),
        mid_attention=draw(st.booleans()),
    )


def keys_of(structure: UNetStructure) -> dict[str, str]:
    """Some keys of every block, diffusers' by LDM's."""
    found = {}
    for ldm, diffusers in structure.blocks():
        if ".resnets." in diffusers:
            layers = {"in_layers.2": "conv1", "out_layers.3": "conv2", "emb_layers.1": "time_emb_proj"}
        elif ".attentions." in diffusers:
            layers = {
                "proj_in": "proj_in",
                "transformer_blocks.0.attn1.to_q": "transformer_blocks.0.attn1.to_q",
            }
        else:
            found[f"{ldm}.weight"] = f"{diffusers}.weight"
            continue
        found |= {f"{ldm}.{old}.weight": f"{diffusers}.{new}.weight" for old, new in layers.items()}
    return found


@law
@given(structures())
def test_the_map_is_a_bijection_for_every_structure(structure: UNetStructure) -> None:
    expected = keys_of(structure)
    names = UNetKeyMap(structure)
    assert {key: names.to_diffusers(key) for key in expected} == expected
    assert {names.to_ldm(key): key for key in expected.values()} == expected
    assert len(set(expected.values())) == len(expected)


@law
@given(structures())
def test_the_structure_is_read_back_from_the_keys_of_either_naming(structure: UNetStructure) -> None:
    keys = keys_of(structure)
    unlabelled = {old: new for old, new in keys.items() if not old.startswith("label_emb.")}
    assert infer_structure(unlabelled) == structure
    assert infer_structure(unlabelled.values()) == structure


@law
@given(st.lists(st.booleans(), min_size=1, max_size=4), st.integers(1, 3))
def test_arithmetic_equals_the_map_of_every_standard_structure(attention: list[bool], layers: int) -> None:
    structure = standard_structure(tuple(attention), layers)
    names = UNetKeyMap(structure)
    for key in keys_of(structure):
        assert ldm_to_diffusers(key, layers) == names.to_diffusers(key)
