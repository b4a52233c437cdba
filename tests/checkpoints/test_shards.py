"""Weights in shards: index and shards must agree, and the index names nothing outside its folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import blueprint, shapes_of, write_folder, write_holes, write_shards
from hypothesis import given
from hypothesis import strategies as st
from strategies import law

from paramerge.checkpoints.component_folder import Weights, is_shard, read_weights
from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError

SHAPES = shapes_of(blueprint("sd15", 16).component("unet"))
STEM = "diffusion_pytorch_model"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The index of a UNet in three shards, in a folder that is complete."""
    write_folder(tmp_path / "model", skip=["unet"])
    return write_shards(tmp_path / "model" / "unet", SHAPES)


def change(index: Path, **changes: str | None) -> dict[str, Any]:
    """Change entries of the weight map; None removes one."""
    content: dict[str, Any] = json.loads(index.read_text())
    content["weight_map"] |= {key.replace("__", "."): value for key, value in changes.items()}
    content["weight_map"] = {k: v for k, v in content["weight_map"].items() if v is not None}
    index.write_text(json.dumps(content))
    return content


def refusal(index: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_base(index.parent.parent)
    return caught.value


def shard(index: Path, number: int) -> Path:
    return index.parent / f"{STEM}-{number:05d}-of-00003.safetensors"


def test_all_shards_are_one_component(index: Path) -> None:
    base = open_base(index.parent.parent)
    unet = [file for file in base.files if file.component == "unet"]
    assert [file.relative.name for file in unet] == [shard(index, i).name for i in (1, 2, 3)]
    targets = [name for file in unet for name in file.targets]
    assert len(targets) == len(set(targets)) == 282
    for file in unet:
        assert file.components.keys() == file.header.tensors.keys()
        assert all(target.key in file.header.tensors for target in file.targets.values())
    assert base.architecture == "sd15"
    assert f"unet/{index.name}" in map(str, base.companions)
    assert not base.left_out


@pytest.mark.parametrize(
    "name",
    [
        f"{STEM}.safetensors.index.fp16.json",
        f"{STEM}.safetensors.fp16.index.json",
    ],
)
def test_an_index_of_a_variant_by_its_new_and_its_old_name(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", skip=["unet"])
    write_shards(folder / "unet", SHAPES, variant="fp16").rename(folder / "unet" / name)
    for variant in (None, "fp16"):
        base = open_base(folder, variant) if variant is None else open_base(folder / "unet", variant)
        shards = [file for file in base.files if file.component == "unet"]
        assert len(shards) == 3
        assert sum(len(file.targets) for file in shards) == 282


def test_shards_of_an_old_variant_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", skip=["unet"])
    index = write_shards(folder / "unet", SHAPES)
    content = index.read_text()
    for i in (1, 2, 3):
        old = shard(index, i)
        old.rename(old.with_name(old.name.replace(".safetensors", ".fp16.safetensors")))
    content = content.replace("-of-00003.safetensors", "-of-00003.fp16.safetensors")
    index.with_name(f"{STEM}.safetensors.index.fp16.json").write_text(content)
    index.unlink()
    assert Counter(file.component for file in open_base(folder).files) == {
        "unet": 3,
        "text_encoder": 1,
        "vae": 1,
    }


def test_shards_of_a_variant_beside_a_plain_file_stay_behind(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    write_shards(folder / "unet", SHAPES, variant="fp16")
    base = open_base(folder)
    assert [str(file.relative) for file in base.files if file.component == "unet"] == [
        f"unet/{STEM}.safetensors"
    ]
    assert len(base.left_out) == 4
    assert {reason for _, reason in base.left_out} == {"another variant of weights that are changed"}


def test_ldm_names_and_a_prefix_are_found_over_all_shards(tmp_path: Path) -> None:
    single = shapes_of(blueprint("sd15", 16).single_file())
    start = "model.diffusion_model."
    ldm = {key: shape for key, shape in single.items() if key.startswith(start)}
    write_shards(tmp_path, ldm)
    (tmp_path / "config.json").write_text("{}")
    base = open_base(tmp_path)
    assert base.architecture == "sd15"
    assert sum(len(file.targets) for file in base.files) == 282


def test_a_scale_in_another_shard_is_seen(tmp_path: Path) -> None:
    key = "mid_block.attentions.0.proj_in"
    write_shards(tmp_path, SHAPES | {f"{key}.scale_weight": ()}, count=2)
    (tmp_path / "config.json").write_text("{}")
    base = open_base(tmp_path)
    assert f"{key}.scale_weight" in base.files[1].header.tensors
    scaled = {t.key for file in base.files for t in file.targets.values() if t.key in file.quantised}
    assert scaled == {f"{key}.weight"}
    assert f"{key}.weight" in base.files[0].header.tensors


def test_the_same_layer_by_two_names_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", skip=["text_encoder"])
    shapes = shapes_of(blueprint("sd15", 16).component("text_encoder"))
    key = next(key for key in shapes if key.endswith("layers.0.mlp.fc1.weight"))
    write_shards(
        folder / "text_encoder", shapes | {key.removeprefix("text_model."): shapes[key]}, stem="model"
    )
    with pytest.raises(CheckpointError, match="same layer"):
        open_base(folder)


OUTSIDE = [
    "../evil.safetensors",
    "../../evil.safetensors",
    "sub/evil.safetensors",
    "./evil.safetensors",
    "..\\evil.safetensors",
    "C:\\evil.safetensors",
    "C:evil.safetensors",
    "\\\\host\\share\\evil.safetensors",
    "/etc/evil.safetensors",
    "..",
    ".",
    "",
]
NO_NAMES = [
    "evil\0.safetensors",
    "evil\n.safetensors",
    "\x1b[2J.safetensors",
    "é" * 122 + ".safetensors",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_outside_the_folder_is_refused(name: str, index: Path) -> None:
    change(index, conv_in__weight=name)
    for place in (index.parent.parent, index.parent, index.parent / "sub"):
        write_holes(place / "evil.safetensors", {"conv_in.weight": SHAPES["conv_in.weight"]})
    error = refusal(index)
    assert error.what == "the index points outside its folder"
    assert error.found == ascii(name)


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_file_name_is_refused(name: str, index: Path) -> None:
    change(index, conv_in__weight=name)
    error = refusal(index)
    assert error.what == "the index names a shard by something that is no file name"
    assert str(error).isascii() or str(index) in str(error)
    assert str(error.found).isprintable()


def test_a_name_of_the_greatest_length_is_a_name(index: Path) -> None:
    name = "x" * (255 - len(".safetensors")) + ".safetensors"
    change(index, conv_in__weight=name)
    assert refusal(index).what == "shards that the index names are missing"


def test_an_absolute_path_is_refused_though_the_file_is_there(index: Path) -> None:
    change(index, conv_in__weight=str(shard(index, 1)))
    assert refusal(index).what == "the index points outside its folder"


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(index: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    shard(index, 2).rename(outside)
    shard(index, 2).symlink_to(outside)
    error = refusal(index)
    assert "leads out of it" in error.what
    assert error.where == str(shard(index, 2))


def test_a_component_folder_that_is_a_link_out_of_the_model_is_refused(index: Path, tmp_path: Path) -> None:
    index.parent.rename(tmp_path / "elsewhere")
    (tmp_path / "model" / "unet").symlink_to(tmp_path / "elsewhere")
    assert "leads out of it" in refusal(index).what


def test_a_shard_in_another_folder_of_the_model_through_a_link_is_taken(index: Path) -> None:
    shard(index, 2).rename(index.parent.parent / "shared.safetensors")
    shard(index, 2).symlink_to("../shared.safetensors")
    files = open_base(index.parent.parent).files
    assert Counter(file.component for file in files) == {"unet": 3, "text_encoder": 1, "vae": 1}


@law
@given(st.text(max_size=30))
def test_no_name_leads_out_of_the_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("shards")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError) as caught:
        read_weights(Weights(None, index), folder)
    if caught.value.what == "shards that the index names are missing":
        assert (folder / name).parent == folder
        assert name.endswith(".safetensors")


@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "settings.json", "model.safetensors.bin"])
def test_a_shard_that_is_not_safetensors_is_refused(name: str, index: Path) -> None:
    change(index, conv_in__weight=name)
    (index.parent / name).write_bytes(b"\x80\x02}q\x00.")
    assert refusal(index).what == "the index names a shard that is not safetensors"


def test_missing_shards_are_all_named(index: Path) -> None:
    shard(index, 1).unlink()
    shard(index, 3).unlink()
    error = refusal(index)
    assert error.what == "shards that the index names are missing"
    assert error.found == f"missing: {shard(index, 1).name}, {shard(index, 3).name}"


def test_a_tensor_that_the_index_does_not_list_is_refused(index: Path) -> None:
    change(index, conv_in__weight=None)
    error = refusal(index)
    assert error.what == "the shard holds tensors that the index does not list for it"
    assert error.found == "conv_in.weight"


@pytest.mark.parametrize(("count", "more"), [(3, ""), (4, " and 1 more"), (9, " and 6 more")])
def test_of_many_tensors_three_are_named_and_the_rest_counted(count: int, more: str, index: Path) -> None:
    names = json.loads(index.read_text())["weight_map"]
    lost = [key for key, name in names.items() if name == shard(index, 1).name][:count]
    change(index, **dict.fromkeys(lost))
    assert refusal(index).found == ", ".join(lost[:3]) + more


def test_a_tensor_that_no_shard_holds_is_refused(index: Path) -> None:
    change(index, ghost__weight=shard(index, 2).name)
    error = refusal(index)
    assert error.what == "the shard lacks tensors that the index places in it"
    assert error.found == "ghost.weight"
    assert shard(index, 2).name in str(error.where)


def test_a_tensor_in_another_shard_than_listed_is_refused(index: Path) -> None:
    change(index, conv_in__weight=shard(index, 2).name)
    assert refusal(index).found == "conv_in.weight"


def test_a_tensor_in_two_shards_is_refused(index: Path) -> None:
    names = json.loads(index.read_text())["weight_map"]
    second = {key: SHAPES[key] for key, name in names.items() if name == shard(index, 2).name}
    write_holes(shard(index, 2), second | {"conv_in.weight": SHAPES["conv_in.weight"]})
    error = refusal(index)
    assert "two shards hold the same tensors" in error.what
    assert error.found == "conv_in.weight"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {"a": 1}}', "no weight_map"),
        ('{"weight_map": {}}', "an empty weight_map"),
        ('{"metadata": [], "weight_map": {"a": "x.safetensors"}}', "metadata that are not"),
    ],
)
def test_what_is_no_index_is_refused(text: str, found: str, index: Path) -> None:
    index.write_bytes(text.encode("utf-8", "surrogatepass"))
    error = refusal(index)
    assert error.what == "this is not an index of shards"
    assert found in str(error.found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "Expecting"),
        ("[]", "a list"),
        ("null", "null"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "is there twice"),
        ('{"weight_map": {"a": "\\ud800.safetensors"}}', "surrogate"),
        ('{"weight_map": {"a": NaN}}', "NaN"),
        ("[" * 100_000, "deep"),
        ("\ud800", "utf-8"),
    ],
)
def test_an_index_that_is_no_json_object_is_refused(text: str, found: str, index: Path) -> None:
    index.write_bytes(text.encode("utf-8", "surrogatepass"))
    error = refusal(index)
    assert error.what in ("this index is not valid JSON", "this index is not a JSON object")
    assert found in str(error.found)


def test_one_file_and_shards_of_the_same_variant_are_refused(index: Path) -> None:
    write_holes(index.parent / f"{STEM}.safetensors", SHAPES)
    error = refusal(index)
    assert "the same weights are there twice" in error.what


def test_shards_without_an_index_are_no_weights(index: Path) -> None:
    index.unlink()
    assert refusal(index).what == "there are no weights in this folder"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("model.fp16-00001-of-00002.safetensors", True),
        ("model-00001-of-00002.fp16.safetensors", True),
        ("model.safetensors", False),
        ("model-1-of-2.safetensors", False),
    ],
)
def test_names_of_shards(name: str, expected: bool) -> None:
    assert is_shard(Path(name)) == expected
