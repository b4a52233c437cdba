"""``paramerge demo``: the main job on the shipped model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import paramerge as pm
from paramerge import shipped
from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import cli
from paramerge.files.header import read_header
from paramerge.inspect.inspection import inspect_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A demo's folder, into which it was written twice, and what the second call printed."""
    folder = tmp_path_factory.mktemp("demo") / "made"
    command = ["demo", "-o", str(folder), "--steps", "1", "--json"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    before = {path.name for path in folder.iterdir()}
    again = CliRunner().invoke(cli, command)
    assert "overwrite" in str(again.exception)
    result = CliRunner().invoke(cli, [*command, "--overwrite"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in folder.iterdir()} == before
    return folder, json.loads(result.stdout)


def test_every_row_is_a_checkpoint_with_its_recipe(made: tuple[Path, dict]) -> None:
    folder, facts = made
    names = [row["name"] for row in facts["rows"]]
    assert names == ["base", "para", "lora", "merged", "reversed", "joint"]
    for row in facts["rows"][1:]:
        header = read_header(Path(row["file"]))
        assert row["layers"] > 0
        assert "paramerge" in "".join(header.metadata)
        assert open_base(Path(row["file"])).architecture.startswith("sd15")
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["grid.png", "emoji-diffusion.safetensors", *(f"{name}.safetensors" for name in names[1:])]
    )


def test_the_orders_differ_and_so_do_all_rows(made: tuple[Path, dict]) -> None:
    folder, _ = made
    contents = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert len(set(contents.values())) == len(contents)


def test_the_grid_has_a_picture_for_each_row_and_prompt(made: tuple[Path, dict]) -> None:
    folder, facts = made
    with Image.open(folder / "grid.png") as image:
        notes = json.loads(image.text["paramerge"])
        pixels = np.asarray(image.convert("RGB"))
    assert notes["prompts"] == facts["prompts"]
    assert [row["file"] for row in notes["rows"]] == [Path(row["file"]).name for row in facts["rows"]]
    # every cell is coloured somewhere: pictures, not blank paper
    side = 64 * max(1, 160 // 64)
    assert pixels.shape[1] >= len(facts["prompts"]) * side
    assert pixels.shape[0] >= len(facts["rows"]) * side


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = CliRunner().invoke(cli, ["demo", "-o", str(tmp_path / "file" / "x")])
    assert result.exit_code != 0
    assert "not a folder" in str(result.exception)


def test_the_adapters_are_what_they_are_called() -> None:
    for adapter in shipped.ADAPTERS.values():
        found = inspect_path(shipped.adapter_file(adapter.name))
        assert found.adapter.family == adapter.kind, adapter.name


def test_the_shipped_model_is_a_base_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    para = shipped.adapter_file("tree")
    command = ["bake", "--base", shipped.MODEL_NAME, "--para", str(para), "-o", "baked"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "baked" / "model_index.json").is_file()
    assert pm.bake(shipped.MODEL_NAME, [pm.Para(para)], "again").output == Path("again")
    assert CliRunner().invoke(cli, ["inspect", shipped.MODEL_NAME]).output.startswith("emoji-diffusion")
