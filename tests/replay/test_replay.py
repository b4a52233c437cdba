"""Recipes done again: the same bytes from files of any name, variants, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from baking import load
from random_recipes import commands, write_inputs

import paramerge as pm
from paramerge.cli.main import main
from paramerge.errors import FileFormatError, MissingInputError, ParamergeError, UsageError
from paramerge.files.writer import write_safetensors

KEY = "paramerge.recipe"


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def state(path: Path) -> dict[str, str]:
    """The SHA-256 of a file, or of every file in a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "inputs"
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All inputs under other names, in other folders."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for number, path in enumerate(sorted(inputs.iterdir())):
        if path.is_dir():
            shutil.copytree(path, folder / f"renamed-{number}")
        else:
            (folder / "deep").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "deep" / f"renamed-{number}.safetensors")
    return folder


@pytest.fixture
def baked(inputs: Path, tmp_path: Path) -> Path:
    """A PaRa and a LoRA in a model, in a folder of its own."""
    output = tmp_path / "out" / "baked.safetensors"
    output.parent.mkdir()
    pm.bake(
        inputs / "one.safetensors",
        [pm.Para(inputs / "p.safetensors", 0.5), pm.Lora(inputs / "l.safetensors", 0.8)],
        output,
    )
    return output


def recipe_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(load(path).metadata[KEY])
    return content


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_the_bytes_are_the_same(count: int, inputs: Path, elsewhere: Path, tmp_path: Path) -> None:
    """Random bakes and merges, replayed from files with other names in other folders."""
    done = folders = merges = 0
    for number, words in enumerate(commands(inputs, count, seed=count)):
        # folders are replayed into others of the same name: theirs is in their metadata
        first, again = (tmp_path / str(number) / way / "out" for way in ("first", "again"))
        first.parent.mkdir(parents=True)
        again.parent.mkdir()
        is_folder = (words[2] if words[0] == "bake" else words[1]).endswith("tree")
        if not is_folder:
            first, again = first.with_suffix(".safetensors"), again.with_suffix(".safetensors")
        code = call(*words, "-o", first)
        if code:
            assert code in (2, 4)  # a rank boundary or block that does not suit it
            continue
        assert call("replay", first, "--models", elsewhere, "-o", again, "--json") == 0, words
        assert state(first) == state(again), words
        done, folders, merges = done + 1, folders + is_folder, merges + (words[0] == "merge")
        shutil.rmtree(tmp_path / str(number))
    assert done > 0.8 * count
    assert folders and merges


def test_a_variant_is_what_would_be_baked(baked: Path, inputs: Path, tmp_path: Path) -> None:
    base, para, lora = (inputs / f"{name}.safetensors" for name in ("one", "p", "l"))
    for place, (changes, adapters, other, dtype) in enumerate(
        [
            ({"set": {2: 0.4}}, [pm.Para(para, 0.5), pm.Lora(lora, 0.4)], base, "keep"),
            ({"without": [1]}, [pm.Lora(lora, 0.8)], base, "keep"),
            ({"dtype": "fp32", "set": {1: 1.0}}, [pm.Para(para, 1.0), pm.Lora(lora, 0.8)], base, "fp32"),
            (
                {"base": inputs / "two.safetensors"},
                [pm.Para(para, 0.5), pm.Lora(lora, 0.8)],
                inputs / "two.safetensors",
                "keep",
            ),
        ]
    ):
        found, wanted = tmp_path / f"{place}-a.safetensors", tmp_path / f"{place}-b.safetensors"
        pm.replay(baked, found, models=[inputs], **changes)  # type: ignore[arg-type]
        pm.bake(other, adapters, wanted, dtype=dtype)
        assert state(found) == state(wanted)


def test_a_recipe_by_itself(baked: Path, inputs: Path, tmp_path: Path) -> None:
    """As JSON, and in TOML, which names files by their places."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe_of(baked)))
    pm.replay(path, tmp_path / "a.safetensors", models=[inputs])
    assert state(tmp_path / "a.safetensors") == state(baked)
    toml = inputs / "recipe.toml"
    toml.write_text(
        '[steps.m]\nmerge = ["one.safetensors", "two.safetensors"]\n'
        '[steps.out]\nbake = "m"\n'
        'adapters = [{lora = "l.safetensors", strength = 0.6}, {para = "p.safetensors"}]\n'
    )
    pm.merge(toml, tmp_path / "b.safetensors")  # type: ignore[arg-type]
    pm.replay(toml, tmp_path / "c.safetensors")
    assert state(tmp_path / "b.safetensors") == state(tmp_path / "c.safetensors")
    pm.replay(toml, tmp_path / "d.safetensors", set={1: 0.2}, without=[2])
    with pytest.raises(UsageError, match="changed and left out"):
        pm.replay(toml, tmp_path / "f.safetensors", set={1: 0.2}, without=[1])
    pm.replay(
        tmp_path / "b.safetensors", tmp_path / "e.safetensors", models=[inputs], set={1: 0.2}, without=[2]
    )
    assert state(tmp_path / "d.safetensors") == state(tmp_path / "e.safetensors")


def test_what_is_missing_is_listed(baked: Path, inputs: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    shutil.copyfile(inputs / "one.safetensors", here / "x.safetensors")
    changed = bytearray((inputs / "p.safetensors").read_bytes())
    changed[-1] ^= 1  # the right size, and another hash
    (here / "p.safetensors").write_bytes(changed)
    with pytest.raises(MissingInputError) as caught:
        pm.replay(baked, tmp_path / "new.safetensors", models=[here])
    text = str(caught.value)
    assert text.startswith("2 of 3 inputs")
    for file in (recipe_of(baked)["steps"][0]["files"][0], recipe_of(baked)["steps"][1]["files"][0]):
        assert all(str(value) in text for value in file.values())
    assert str(here) in text and "one.safetensors" not in text
    assert call("replay", baked, "-o", tmp_path / "new.safetensors") == 9
    assert not (tmp_path / "new.safetensors").exists()


def test_a_base_that_is_missing_and_could_be_made_again(baked: Path, inputs: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.safetensors"
    pm.bake(baked, [pm.Lora(inputs / "m.safetensors")], second)
    baked.unlink()
    with pytest.raises(MissingInputError, match="itself made from inputs that are here"):
        pm.replay(second, tmp_path / "new.safetensors", models=[inputs])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"recipe": 3}, "a version that this paramerge does not know"),
    "version that is true": ({"recipe": True}, "a version that this paramerge does not know"),
    "steps": ({"steps": 3}, "steps"),
    "step": ({"steps": [3]}, "steps 1"),
    "kind": ({"steps": [{"kind": "pickle"}]}, "kind"),
    "no files": ({"steps": [{"kind": "lora", "strength": 1, "files": []}]}, "files"),
    "strength": ({"steps": [{"kind": "lora", "strength": "1", "files": []}]}, "strength"),
    "hash": ({"base": {"layout": "single-file", "files": [{"sha256": "*" * 64, "bytes": 1}]}}, "sha256"),
    "size": ({"base": {"layout": "single-file", "files": [{"sha256": "a" * 64, "bytes": 1.5}]}}, "bytes"),
    "gamma": ({"options": {"gamma": 7}}, "options"),
    "dtype": ({"options": {"dtype": "I64"}}, "options"),
    "merge": ({"recipe": 2}, "merge"),
    "a circle": (
        {
            "recipe": 2,
            "merge": {"models": [], "steps": [{"method": "weighted-sum", "inputs": ["model 1", "step 1"]}]},
        },
        "step 1",
    ),
    "a model that is not there": (
        {
            "recipe": 2,
            "merge": {"models": [], "steps": [{"method": "weighted-sum", "inputs": ["model 1", "model 2"]}]},
        },
        "model 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_recipe_that_is_none(name: str, baked: Path, inputs: Path, tmp_path: Path) -> None:
    changes, text = WRONG[name]
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**recipe_of(baked), **changes}))
    with pytest.raises(FileFormatError, match=text):
        pm.replay(path, tmp_path / "new.safetensors", models=[inputs])


def test_no_recipe(inputs: Path, tmp_path: Path) -> None:
    for path in (inputs / "one.safetensors", inputs / "l.safetensors", inputs / "tree"):
        with pytest.raises(FileFormatError, match="there is no recipe here"):
            pm.replay(path, tmp_path / "new.safetensors")
    write_safetensors(tmp_path / "x.safetensors", dict(load(inputs / "l.safetensors").tensors), {KEY: "{"})
    with pytest.raises(FileFormatError, match="the recipe cannot be read"):
        pm.replay(tmp_path / "x.safetensors", tmp_path / "new.safetensors")
    (tmp_path / "other.json").write_text('{"some": "thing"}')
    with pytest.raises(FileFormatError, match="no recipe of a checkpoint"):
        pm.replay(tmp_path / "other.json", tmp_path / "new.safetensors")


@pytest.mark.parametrize(
    "changes", [{"set": {3: 1.0}}, {"set": {0: 1.0}}, {"without": [1, 2]}, {"set": {1: 1.0}, "without": [1]}]
)
def test_steps_that_are_not_there(changes: dict[str, Any], baked: Path, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        pm.replay(baked, tmp_path / "new.safetensors", models=[inputs], **changes)


def test_a_folder_of_models_that_is_missing(baked: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamergeError, match="a folder of models does not exist"):
        pm.replay(baked, tmp_path / "new.safetensors", models=[tmp_path / "missing"])
