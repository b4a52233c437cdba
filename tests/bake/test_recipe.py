"""What the output says about itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from baking import load, lora_file, para_file, plan_of, random_bases, random_factors, shapes_of

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.bake.recipe import RECIPE_KEY
from paramerge.files.writer import write_safetensors
from paramerge.version import __version__


@pytest.fixture
def inputs(models, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base with metadata of its own, a PaRa and a LoRA."""
    stored = load(models())
    base = tmp_path / "secret-base.safetensors"
    metadata = {
        "modelspec.title": "Base",
        "modelspec.author": "someone",
        "modelspec.hash_sha256": "0xold",
        "sshs_model_hash": "old",
        "custom": "kept",
    }
    write_safetensors(base, stored.tensors, metadata)
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    para = para_file(tmp_path / "secret-para.safetensors", random_bases(shapes_of(base), layers, 2))
    lora = lora_file(tmp_path / "secret-lora.safetensors", random_factors(shapes_of(base), layers, 2))
    return base, para, lora


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def baked(inputs: tuple[Path, Path, Path], output: Path, **options: object) -> dict[str, str]:
    base, para, lora = inputs
    bake(plan_of(base, Step("para", para, 0.9), Step("lora", lora, 0.8), **options), output)
    return load(output).metadata


def test_recipe(inputs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    metadata = baked(inputs, tmp_path / "out.safetensors", gamma=0.5)
    recipe = json.loads(metadata[RECIPE_KEY])
    base, para, lora = inputs
    assert recipe["recipe"] == 1
    assert recipe["versions"]["paramerge"] == __version__
    assert recipe["base"]["files"] == [
        {"name": base.name, "sha256": sha256(base), "bytes": base.stat().st_size}
    ]
    assert [(s["kind"], s["strength"], s["layers"]) for s in recipe["steps"]] == [
        ("para", 0.9, 16),
        ("lora", 0.8, 16),
    ]
    assert [s["files"][0]["sha256"] for s in recipe["steps"]] == [sha256(para), sha256(lora)]
    assert recipe["options"] == {
        "merge": "joint",
        "gamma": 0.5,
        "only": [],
        "dtype": "keep",
        "allow_unmatched": False,
        "private": False,
    }
    assert str(tmp_path) not in json.dumps(metadata)


def test_the_bases_own_metadata_stay_unless_they_became_untrue(inputs, tmp_path: Path) -> None:
    metadata = baked(inputs, tmp_path / "out.safetensors")
    assert metadata["custom"] == "kept"
    assert metadata["modelspec.author"] == "someone"
    assert metadata["modelspec.title"] == "secret-base + secret-para @ 0.9 + secret-lora @ 0.8"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.resolution"] == "512x512"
    assert "secret-lora" in metadata["modelspec.merged_from"]
    assert "modelspec.hash_sha256" not in metadata
    assert "sshs_model_hash" not in metadata


def test_private_leaves_names_out_but_hashes_in(inputs, tmp_path: Path) -> None:
    metadata = baked(inputs, tmp_path / "out.safetensors", private=True)
    assert "secret" not in json.dumps(metadata)
    assert sha256(inputs[1]) in metadata[RECIPE_KEY]


def test_the_hash_is_the_same_computed_in_the_pass_or_before(
    inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First from the pass (nothing is cached for a new file), then from the whole file's cached hash."""
    from paramerge.files import hashing
    from paramerge.files.source import Source

    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", 0)
    base = inputs[0]
    assert hashing.cached_sha256(Source.open(base)) is None
    first = baked(inputs, tmp_path / "1.safetensors")
    assert hashing.cached_sha256(Source.open(base)) == hashing.file_sha256(base) == sha256(base)
    assert baked(inputs, tmp_path / "2.safetensors") == first
    assert sha256(base) in first[RECIPE_KEY]


def test_a_bake_of_a_bake_keeps_the_history(inputs, tmp_path: Path) -> None:
    baked(inputs, tmp_path / "first.safetensors")
    second = baked((tmp_path / "first.safetensors", *inputs[1:]), tmp_path / "second.safetensors")
    recipe = json.loads(second[RECIPE_KEY])
    assert recipe["base"]["files"][0]["sha256"] == sha256(tmp_path / "first.safetensors")
    assert recipe["base_recipe"]["base"]["files"][0]["sha256"] == sha256(inputs[0])


def test_a_folder_has_the_recipe_in_each_changed_file_and_beside_them(models, tmp_path: Path) -> None:
    base = models(layout="diffusers-folder", max_shard_bytes=4_000_000)
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    para = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    bake(plan_of(base, Step("para", para)), tmp_path / "out")
    recipe = json.loads((tmp_path / "out" / "paramerge_recipe.json").read_text())
    del recipe["outputs"]  # stands only beside the files
    files = {entry["name"]: entry["sha256"] for entry in recipe["base"]["files"]}
    assert files == {
        str(path.relative_to(base)): sha256(path)
        for part in ("unet", "text_encoder", "vae")
        for path in (base / part).glob("*.safetensors")
    }
    for path in (tmp_path / "out" / "unet").glob("*.safetensors"):
        metadata = load(path).metadata
        if path.read_bytes() != (base / "unet" / path.name).read_bytes():
            assert json.loads(metadata[RECIPE_KEY]) == recipe


def names_in(metadata: dict[str, str]) -> list[str]:
    return [key for key, value in metadata.items() if "secret" in value or "/home" in value]


def test_private_leaves_out_what_earlier_bakes_and_other_tools_said(inputs, tmp_path: Path) -> None:
    """Names in the base's own recipe, as far back as it goes, and in metadata of whatever tool."""
    base, para, lora = inputs
    stored = load(base)
    kept = {"modelspec.architecture": "stable-diffusion-v1", "modelspec.prediction_type": "epsilon"}
    told = {
        "sd_merge_recipe": "secret-a + secret-b",
        "workflow": '{"path": "/home/someone"}',
        "ss_output_name": "secret",
        "modelspec.author": "secret person",
        "modelspec.resolution": "/home/someone/secret file",
    }
    write_safetensors(base, stored.tensors, {**kept, **told})
    baked(inputs, tmp_path / "secret-first.safetensors")
    baked((tmp_path / "secret-first.safetensors", para, lora), tmp_path / "secret-second.safetensors")
    third = baked(
        (tmp_path / "secret-second.safetensors", para, lora), tmp_path / "third.safetensors", private=True
    )
    assert names_in(third) == []
    assert kept.items() <= third.items()
    recipe = json.loads(third[RECIPE_KEY])
    history = [recipe, recipe["base_recipe"], recipe["base_recipe"]["base_recipe"]]
    assert [entry["base"]["files"][0]["sha256"] for entry in history] == [
        sha256(tmp_path / "secret-second.safetensors"),
        sha256(tmp_path / "secret-first.safetensors"),
        sha256(base),
    ]
    assert [[step["strength"] for step in entry["steps"]] for entry in history] == [[0.9, 0.8]] * 3


def test_private_of_a_folder_reaches_files_that_do_not_change(models, tmp_path: Path) -> None:
    base = models(layout="diffusers-folder")
    shapes = shapes_of(base)
    layers = [layer for layer in shapes if ".attn1.to_q" in layer or "q_proj" in layer]
    both = para_file(tmp_path / "secret.safetensors", random_bases(shapes, layers, 2))
    bake(plan_of(base, Step("para", both)), tmp_path / "first")
    assert names_in(load(tmp_path / "first" / "text_encoder").metadata)
    unet = [layer for layer in layers if layer.startswith("unet")]
    one = para_file(tmp_path / "secret-2.safetensors", random_bases(shapes, unet, 2))
    bake(plan_of(tmp_path / "first", Step("para", one), private=True), tmp_path / "second")
    for path in (tmp_path / "second").rglob("*.safetensors"):
        assert names_in(load(path).metadata) == [], path
    before, after = (load(tmp_path / name / "text_encoder") for name in ("first", "second"))
    assert after.raw == before.raw


def test_private_of_a_folder_leaves_out_where_it_was_loaded_from(models, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(models(layout="diffusers-folder"), base)
    config = base / "unet" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "_name_or_path": "/home/someone/secret"}))
    (base / "scheduler").mkdir(exist_ok=True)
    (base / "scheduler" / "notes.json").write_text('{"half')
    layer = next(layer for layer in shapes_of(base) if ".attn1.to_q" in layer)
    para = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), [layer], 2))
    bake(plan_of(base, Step("para", para), private=True), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "unet" / "config.json").read_text()) == content
    assert (tmp_path / "out" / "scheduler" / "notes.json").read_text() == '{"half'
    bake(plan_of(base, Step("para", para)), tmp_path / "plain")
    assert (tmp_path / "plain" / "unet" / "config.json").read_bytes() == config.read_bytes()


def with_recipe(base: Path, path: Path, text: str) -> Path:
    write_safetensors(path, load(base).tensors, {RECIPE_KEY: text})
    return path


FOREIGN = {
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"base_recipe":' * 20_000 + "1" + "}" * 20_000,
    "somewhat deep": '{"base_recipe":' * 300 + "1" + "}" * 300,
    "deep inside": '{"steps": ' + "[" * 500 + "]" * 500 + "}",
    "no JSON": "hello",
    "empty": "",
    "list": "[]",
    "text": '"text"',
    "null": "null",
    "half a pair": '{"a": "\\ud800"}',
    "a key twice": '{"a": 1, "a": 2}',
    "NaN": '{"recipe": NaN}',
    "infinite": '{"recipe": {"a": [1e999]}}',
    "long integer": '{"recipe": ' + "9" * 5000 + "}",
    "huge": '{"recipe": "' + "x" * (5 << 20) + '"}',
}


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_recipe_that_cannot_be_kept_is_left_out_with_a_word(
    text: str, private: bool, inputs, tmp_path: Path
) -> None:
    base = with_recipe(inputs[0], tmp_path / "b.safetensors", text)
    plan = plan_of(base, Step("para", inputs[1]), private=private)
    assert [warning for warning in plan.warnings if "recipe of an earlier bake" in warning]
    report = bake(plan, tmp_path / "out.safetensors")
    assert json.dumps(report.as_dict(), allow_nan=False)
    assert "base_recipe" not in json.loads(load(tmp_path / "out.safetensors").metadata[RECIPE_KEY])


@pytest.mark.parametrize(
    "text",
    [
        '{"base_recipe":' * 80 + "1" + "}" * 80,
        '{"any": ["thing", null, 1.5, true], "\\ud83d\\ude00": "\\u00e4"}',
        "{}",
    ],
)
def test_any_other_recipe_is_kept_as_it_is(text: str, inputs, tmp_path: Path) -> None:
    base = with_recipe(inputs[0], tmp_path / "b.safetensors", text)
    plan = plan_of(base, Step("para", inputs[1]))
    assert not [warning for warning in plan.warnings if "recipe" in warning]
    assert json.dumps(bake(plan, tmp_path / "out.safetensors").as_dict(), allow_nan=False)
    recipe = json.loads(load(tmp_path / "out.safetensors").metadata[RECIPE_KEY])
    assert recipe["base_recipe"] == json.loads(text)


@pytest.mark.parametrize("key", ["base", "steps", "files", "options", "families", "blocks", "sha256", "name"])
@pytest.mark.parametrize("value", ["secret", ["secret"], {"secret": {"secret": "secret"}}, 3, None])
def test_private_takes_wrong_types_in_a_recipe(key: str, value: object, inputs, tmp_path: Path) -> None:
    recipe = {key: value, "steps": [{key: value}, value], "base": {key: value, "files": [{key: value}]}}
    base = with_recipe(inputs[0], tmp_path / "b.safetensors", json.dumps(recipe))
    bake(plan_of(base, Step("para", inputs[1]), private=True), tmp_path / "out.safetensors")
    assert names_in(load(tmp_path / "out.safetensors").metadata) == []
