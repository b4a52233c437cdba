"""``paramerge inspect FOLDER``: a line for each adapter and model in it, in the order asked for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import kohya_layer, random_factors, save

from paramerge import shipped
from paramerge.cli.main import main
from paramerge.formats import write_para
from paramerge.inspect.folder import SORTS, inspect_folder
from paramerge.models.names import ModuleName

Capture = pytest.CaptureFixture[str]
TO_Q = ModuleName("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs of unequal rank, a PaRa in a subfolder, a PEFT folder, a damaged file, a stranger."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(5)
    for name, rank in (("small", 2), ("Large", 16)):
        up, down = random_factors(rng, 320, 320, rank)
        metadata = {"modelspec.trigger_phrase": f"{name} things"}
        save(folder / f"{name}.safetensors", kohya_layer(LAYER, up, down), metadata)
    (folder / "paras").mkdir()
    write_para(
        folder / "paras" / "p.safetensors", {TO_Q: np.eye(320, 4, dtype=np.float32)}, architecture="sd15"
    )
    peft = folder / "peft"
    peft.mkdir()
    up, down = random_factors(rng, 320, 320, 3)
    stem = f"base_model.model.{TO_Q.path}"
    save(peft / "adapter_model.safetensors", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    (peft / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 3}))
    (folder / "torn.safetensors").write_bytes(b"\xff" * 40)
    save(folder / "stranger.safetensors", {"a": np.zeros(3, np.float32)})
    (folder / "notes.txt").write_text("no model")
    return folder


def listed(capsys: Capture, *arguments: object) -> list[dict[str, Any]]:
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert exit_.value.code == 0, captured.err
    content = json.loads(captured.out)
    assert content["what"] == "folder"
    entries: list[dict[str, Any]] = content["entries"]
    return entries


def test_every_model_has_its_line(capsys: Capture, models: Path) -> None:
    entries = {Path(entry["path"]).relative_to(models).as_posix(): entry for entry in listed(capsys, models)}
    assert {name: (entry["what"], entry["family"], entry["ranks"]) for name, entry in entries.items()} == {
        "small.safetensors": ("adapter", "LoRA", [2, 2]),
        "Large.safetensors": ("adapter", "LoRA", [16, 16]),
        "paras/p.safetensors": ("adapter", "PaRa", [4, 4]),
        "peft": ("adapter", "LoRA", [3, 3]),
        "torn.safetensors": ("damaged", "", None),
        "stranger.safetensors": ("unknown", "", None),
    }
    assert entries["torn.safetensors"]["problem"]
    assert entries["small.safetensors"]["notes"]["trigger"] == "small things"


def test_the_table_names_all_and_counts_them(capsys: Capture, models: Path) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", str(models)])
    shown = capsys.readouterr().out
    for name in ("small.safetensors", "Large.safetensors", "paras/p.safetensors", "torn.safetensors"):
        assert name in shown.replace("\n", "")
    assert "4 adapters" in shown


def test_orders(models: Path) -> None:
    """Each order sorts by what it is named for, and what is equal by name."""

    def names(sort: str) -> list[str]:
        return [entry.path.name for entry in inspect_folder(models, sort)]

    assert names("name")[:2] == ["Large.safetensors", "p.safetensors"]
    assert names("rank")[:4] == ["Large.safetensors", "p.safetensors", "peft", "small.safetensors"]
    assert names("size")[0] == "Large.safetensors"
    for sort in SORTS:
        assert sorted(names(sort)) == sorted(names("name"))


def test_a_model_of_several_files_is_one_entry(tmp_path: Path, capsys: Capture) -> None:
    shipped_model = shipped.model()
    shutil.copytree(shipped_model, tmp_path / "model")
    (entry,) = listed(capsys, tmp_path)
    assert (entry["what"], entry["family"]) == ("checkpoint", "diffusers-folder")


def test_links_in_a_circle_end(models: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copy(models / "small.safetensors", tmp_path / "one.safetensors")
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(listed(capsys, tmp_path)) == 1


def test_a_folder_without_models_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", str(tmp_path)])
    assert exit_.value.code == 3
    assert "not a model" in capsys.readouterr().err


def test_a_folder_that_may_not_be_entered_is_an_entry(models: Path, tmp_path: Path, capsys: Capture) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may enter every folder")
    shutil.copy(models / "small.safetensors", tmp_path / "one.safetensors")
    (tmp_path / "closed").mkdir(mode=0)
    problems = {Path(entry["path"]).name: entry["problem"] for entry in listed(capsys, tmp_path)}
    assert problems["one.safetensors"] == ""
    assert problems["closed"]
