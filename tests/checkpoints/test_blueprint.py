"""Blueprints against the inventories of real files and against the models that diffusers builds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from blueprints import sd15, sdxl
from checkpoint_files import ARCHITECTURES, blueprint, configs, meta_model, parameter_shapes, shapes_of

from paramerge.errors import UsageError
from paramerge.models.clip_keys import canonical_key
from paramerge.models.registry import published

COMPONENTS = [(name, component) for name in ARCHITECTURES for component in blueprint(name).components]


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_single_files_are_those_of_the_real_models(architecture: str, shared_dir: Path) -> None:
    path = shared_dir / "fixtures" / "inventories" / f"{architecture}_single_file.json.gz"
    inventory = json.loads(gzip.decompress(path.read_bytes()))
    ours = {spec.key: [spec.dtype, list(spec.shape)] for spec in blueprint(architecture).single_file()}
    assert ours == inventory


@pytest.mark.parametrize("shrink", [1, 16])
@pytest.mark.parametrize(("architecture", "component"), COMPONENTS)
def test_components_are_those_that_diffusers_and_transformers_build(
    architecture: str, component: str, shrink: int
) -> None:
    ours = shapes_of(blueprint(architecture, shrink).component(component))
    ours = {key: shape for key, shape in ours.items() if not key.endswith("position_ids")}
    theirs = parameter_shapes(meta_model(architecture, component, shrink))
    if component.startswith("text_encoder"):
        theirs = {canonical_key(key) or key: shape for key, shape in theirs.items()}
    assert ours == theirs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_fill_their_tensor(architecture: str) -> None:
    for spec in blueprint(architecture).single_file():
        for name, _ in spec.parts:
            assert name.partition(".")[0] in blueprint(architecture).components
        if len(spec.parts) > 1:
            assert sum(shape[0] for _, shape in spec.parts) == spec.shape[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shrinking_keeps_every_key_of_the_single_file(architecture: str) -> None:
    small = blueprint(architecture, 16).single_file()
    assert [spec.key for spec in small] == [spec.key for spec in blueprint(architecture).single_file()]
    assert sum(len(spec.shape) > 1 for spec in small) > 300


@pytest.mark.parametrize("shrink", [0, -1, 3, 64, 1000])
def test_a_shrinkage_that_does_not_divide_the_widths_is_refused(shrink: int) -> None:
    with pytest.raises(UsageError, match="divided"):
        sd15(shrink)


def test_inpainting_differs_from_the_plain_model_in_the_first_convolution_alone() -> None:
    plain, inpainting = (
        shapes_of(sd15().component("unet")),
        shapes_of(sd15(inpainting=True).component("unet")),
    )
    assert {k for k in plain if plain[k] != inpainting[k]} == {"conv_in.weight"}
    assert inpainting["conv_in.weight"] == (320, 9, 3, 3)


def test_the_first_encoder_can_be_named_as_transformers_5_saves_it() -> None:
    bare = sdxl(16).component("text_encoder", text_model_prefix=False)
    named = sdxl(16).component("text_encoder", text_model_prefix=True)
    assert {f"text_model.{spec.key}" for spec in bare} == {spec.key for spec in named}
    second = sdxl(16).component("text_encoder_2", text_model_prefix=False)
    assert all(spec.key.startswith("text_model.") or spec.key == "text_projection.weight" for spec in second)


def test_names_of_architectures_are_those_that_are_reported() -> None:
    assert {name: make().architecture for name, make in published().items()} == {n: n for n in published()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_pipeline_of_the_folder_exists_in_diffusers(architecture: str) -> None:
    import diffusers
    from blueprint_configs import folder_configs

    index = folder_configs(blueprint(architecture))["model_index.json"]
    assert hasattr(diffusers, str(index["_class_name"]))
    for component in blueprint(architecture).components:
        assert isinstance(index[component], list)
        assert component in configs(architecture)
