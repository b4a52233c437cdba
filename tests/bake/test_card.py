"""Model cards: beside a file, in a folder, on request; whole or not at all, and the same again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from baking import load
from random_recipes import write_inputs

import paramerge as pm
from paramerge.bake import bake as bake_module
from paramerge.cli.main import main
from paramerge.errors import OutputError
from paramerge.files.writer import write_safetensors


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards") / "inputs"
    write_inputs(folder)
    stored = load(folder / "l.safetensors")
    licence = {"modelspec.license": "CreativeML `Open` RAIL|M"}
    write_safetensors(folder / "li|c`en*sed.safetensors", stored.tensors, {**stored.metadata, **licence})
    (folder / "tree" / "README.md").write_text("the base's own")
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_beside_a_file(inputs: Path, tmp_path: Path) -> None:
    base, lora = inputs / "one.safetensors", inputs / "li|c`en*sed.safetensors"
    words = ["bake", "--base", base, "--lora", f"{lora}@0.5", "--card", "-o", tmp_path / "v1.5.safetensors"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0
    text = (tmp_path / "v1.5.md").read_text()
    assert sha256(base) in text and sha256(lora) in text
    assert "adapter 1  lora li c en sed.safetensors @ 0.5" in text
    assert "adapter 1 states `CreativeML  Open  RAIL M`" in text
    assert "unknown for the others" in text
    assert str(tmp_path) not in text and str(inputs) not in text
    without = tmp_path / "without.safetensors"
    pm.bake(base, [pm.Lora(lora, 0.5)], without)
    assert without.read_bytes() == (tmp_path / "v1.5.safetensors").read_bytes()
    assert not without.with_suffix(".md").exists()


def test_in_a_folder_and_again(inputs: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out" / "model", tmp_path / "again" / "model"
    for path in (out, again):
        path.parent.mkdir()
    pm.merge([inputs / "tree", inputs / "two.safetensors"], out, weights=(0.7, 0.3), card=True)
    text = (out / "README.md").read_text()
    assert "weighted-sum of model 1, model 2; weights 0.7 and 0.3" in text
    assert "Unknown: no input states one" in text and "DiffusionPipeline" in text
    recipe = json.loads((out / "paramerge_recipe.json").read_text())
    assert recipe["options"]["card"] is True
    assert [file["path"] for file in recipe["outputs"]].count("README.md") == 1
    assert pm.verify(out, models=[inputs]).verdict == "identical"
    pm.replay(out, again, models=[inputs])
    assert {p.relative_to(again): sha256(p) for p in again.rglob("*") if p.is_file()} == {
        p.relative_to(out): sha256(p) for p in out.rglob("*") if p.is_file()
    }
    pm.merge([inputs / "tree", inputs / "two.safetensors"], out, weights=(0.7, 0.3), overwrite=True)
    assert (out / "README.md").read_text() == "the base's own"


def test_a_private_card_has_no_names(inputs: Path, tmp_path: Path) -> None:
    lora = inputs / "li|c`en*sed.safetensors"
    pm.bake(inputs / "one.safetensors", [lora], tmp_path / "out.safetensors", card=True, private=True)
    text = (tmp_path / "out.md").read_text()
    assert "one" not in text.split() and "c en sed" not in text and "RAIL" not in text
    assert sha256(lora) in text


def test_a_card_that_is_there_is_kept(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    (tmp_path / "out.md").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        pm.bake(inputs / "one.safetensors", [inputs / "l.safetensors"], out, card=True)
    assert not out.exists() and (tmp_path / "out.md").read_text() == "mine"
    pm.bake(inputs / "one.safetensors", [inputs / "l.safetensors"], out, card=True, overwrite=True)
    assert "# one + l" in (tmp_path / "out.md").read_text()


def test_a_card_that_cannot_be_written(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither model nor card appears."""

    def full(*_: object) -> bytes:
        raise OSError(28, "no space")

    monkeypatch.setattr(bake_module, "model_card", full)
    with pytest.raises(OutputError):
        pm.bake(
            inputs / "one.safetensors", [inputs / "l.safetensors"], tmp_path / "out.safetensors", card=True
        )
    assert not list(tmp_path.iterdir())
