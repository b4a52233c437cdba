"""What adapters reach: exactly the Linear and Conv layers of the models, as views of what is stored."""

from __future__ import annotations

from collections import Counter

import pytest
from checkpoint_files import ARCHITECTURES, Shape, blueprint, layers, meta_model, shapes_of

from paramerge.checkpoints.targets import Target, find_targets
from paramerge.errors import CheckpointError
from paramerge.models.clip_keys import canonical_key
from paramerge.models.names import ModuleName

COMPONENTS = [(name, part) for name in ARCHITECTURES for part in blueprint(name).components if part != "vae"]


def layers_of(architecture: str, component: str) -> dict[ModuleName, Shape]:
    """The Linear and Conv2d layers of the model that diffusers or transformers builds."""
    found = layers(meta_model(architecture, component))
    if component == "unet":
        return {ModuleName(component, path): shape for path, shape in found.items()}
    names = {path: canonical_key(f"{path}.weight") or "" for path in found}
    return {ModuleName(component, names[path].removesuffix(".weight")): found[path] for path in found}


@pytest.mark.parametrize(("architecture", "component"), COMPONENTS)
def test_a_folder_offers_the_layers_of_the_model(architecture: str, component: str) -> None:
    shapes = shapes_of(blueprint(architecture).component(component))
    targets = find_targets(shapes, component)
    assert {name: target.shape for name, target in targets.items()} == layers_of(architecture, component)
    assert all(t.shape == shapes[t.key] and t.rows is None and not t.transposed for t in targets.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_single_file_offers_the_layers_of_all_its_models(architecture: str) -> None:
    shapes = shapes_of(blueprint(architecture).single_file())
    targets = find_targets(shapes)
    expected: dict[ModuleName, Shape] = {}
    for component in blueprint(architecture).components:
        if component != "vae":
            expected |= layers_of(architecture, component)
    found = {name: target.shape for name, target in targets.items()}
    if architecture == "sd2":  # a last layer and a projection that diffusers leaves out
        unused = {n for n in found if ".layers.23." in n.path or n.path == "text_projection"}
        assert len(unused) == 7
        found = {name: shape for name, shape in found.items() if name not in unused}
    assert found == expected


@pytest.mark.parametrize("naming", ["model.diffusion_model.", "diffusion_model.", "", "unet."])
@pytest.mark.parametrize("ldm", [True, False])
def test_a_bare_unet_may_have_either_naming_and_any_usual_prefix(naming: str, ldm: bool) -> None:
    if ldm:
        single = shapes_of(blueprint("sdxl", 16).single_file())
        start = "model.diffusion_model."
        shapes = {naming + k.removeprefix(start): v for k, v in single.items() if k.startswith(start)}
    else:
        shapes = {naming + k: v for k, v in shapes_of(blueprint("sdxl", 16).component("unet")).items()}
    targets = find_targets(shapes)
    assert len(targets) == 794
    assert {name: t.shape for name, t in targets.items()} == layers_of_small_sdxl()


def layers_of_small_sdxl() -> dict[ModuleName, Shape]:
    found = layers(meta_model("sdxl", "unet", 16))
    return {ModuleName("unet", path): shape for path, shape in found.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_views_cover_stored_tensors_without_overlap(architecture: str) -> None:
    shapes = shapes_of(blueprint(architecture).single_file())
    by_key: dict[str, list[Target]] = {}
    for target in find_targets(shapes).values():
        by_key.setdefault(target.key, []).append(target)
    for key, targets in by_key.items():
        stored = shapes[key]
        if len(targets) == 1:
            (target,) = targets
            assert target.rows is None
            assert target.shape == (stored[::-1] if target.transposed else stored)
            continue
        rows = sorted(target.rows or (0, 0) for target in targets)
        assert [start for start, _ in rows] == [0, *(stop for _, stop in rows[:-1])]
        assert rows[-1][1] == stored[0]
        assert all(t.shape == ((t.rows or (0, 0))[1] - (t.rows or (0, 0))[0], *stored[1:]) for t in targets)


def test_the_second_encoder_of_sdxl_has_stacked_and_transposed_views() -> None:
    targets = find_targets(shapes_of(blueprint("sdxl").single_file()))
    stem = "text_model.encoder.layers.3.self_attn"
    rows = [targets[ModuleName("text_encoder_2", f"{stem}.{x}_proj")].rows for x in "qkv"]
    assert rows == [(0, 1280), (1280, 2560), (2560, 3840)]
    assert targets[ModuleName("text_encoder_2", f"{stem}.out_proj")].rows is None
    projection = targets[ModuleName("text_encoder_2", "text_projection")]
    assert projection.transposed
    assert projection.key == "conditioner.embedders.1.model.text_projection"
    assert Counter(t.transposed for t in targets.values())[True] == 1


def test_a_projection_that_is_not_square_is_seen_transposed() -> None:
    targets = find_targets({"cond_stage_model.model.text_projection": (1024, 640)})
    assert targets[ModuleName("text_encoder", "text_projection")].shape == (640, 1024)


def test_embeddings_norms_and_buffers_are_no_layers() -> None:
    names = find_targets(shapes_of(blueprint("sd15").single_file()))
    assert not [name for name in names if "norm" in name.path or "embeddings" in name.path]
    assert ModuleName("unet", "time_embedding.linear_1") in names


def test_a_stacked_tensor_that_cannot_be_divided_is_refused() -> None:
    key = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    with pytest.raises(CheckpointError, match="cannot be divided") as caught:
        find_targets({key: (100, 32)})
    assert caught.value.where == key
    assert "[100, 32]" in str(caught.value.found)


def test_two_tensors_that_are_the_same_layer_are_refused() -> None:
    stem = "encoder.layers.0.mlp.fc1.weight"
    with pytest.raises(CheckpointError, match="same layer") as caught:
        find_targets({stem: (4, 4), f"text_model.{stem}": (4, 4)}, "text_encoder")
    assert f"{stem} and text_model.{stem}" in str(caught.value.found)
