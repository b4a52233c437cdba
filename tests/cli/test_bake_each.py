"""``bake --each``: many adapters onto one base, a plan and an output each, faults counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paramerge import shipped
from paramerge.cli.main import main

BASE = shipped.MODEL_NAME
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "loras").mkdir()
    for name in ("tree", "butterfly"):
        shutil.copy(shipped.adapter_file(name), tmp_path / "loras" / f"{name}.safetensors")
    (tmp_path / "loras" / "bad.safetensors").write_text("no adapter")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["bake", "--base", BASE, *arguments])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_each_is_baked_as_it_would_be_alone_and_faults_are_counted(here: Path, capsys: Capture) -> None:
    code, out, err = call(capsys, "--lora", "blueprint", "--each", "loras/*.safetensors@0.5", "-o", "all")
    assert code == 3, err  # the damaged file's
    assert out.splitlines()[-1] == "all  2 of 3 baked"
    assert "where: loras/bad.safetensors" in err
    assert sorted(path.name for path in (here / "all").iterdir()) == ["butterfly", "tree"]
    alone = ("--lora", "blueprint", "--adapter", "loras/tree.safetensors@0.5", "-o", "alone")
    assert call(capsys, *alone)[0] == 0
    assert (here / "all/tree" / WEIGHTS).read_bytes() == (here / "alone" / WEIGHTS).read_bytes()


def test_files_that_the_shell_named_and_folders_are_understood(here: Path, capsys: Capture) -> None:
    files = ("loras/tree.safetensors", "loras/butterfly")
    code, out, err = call(capsys, "--each", *files, "-o", "all", "--dry-run", "--json")
    assert code == 0, err
    content = json.loads(out)
    assert [bake["adapter"] for bake in content["bakes"]] == [files[0], f"{files[1]}.safetensors"]
    assert [bake["plan"]["steps"][0]["file"] for bake in content["bakes"]] == [
        "tree.safetensors",
        "butterfly.safetensors",
    ]
    assert content["failed"] == 0
    assert not (here / "all").exists()  # a plan makes nothing
    code, out, _ = call(capsys, "--each", "loras", "-o", "all", "--dry-run", "--json")
    content = json.loads(out)
    assert (code, content["failed"], len(content["bakes"])) == (3, 1, 3)
    assert content["bakes"][0]["error"]["where"] == content["bakes"][0]["adapter"] == "loras/bad.safetensors"


def test_what_cannot_be_begun_is_refused(here: Path, capsys: Capture) -> None:
    code, _, err = call(capsys, "--each", "loras/x*.safetensors", "-o", "all")
    assert (code, "no adapter to bake" in err) == (2, True)
    code, _, err = call(capsys, "--each", "loras")
    assert (code, "-o FOLDER" in err) == (2, True)
    code, _, err = call(capsys, "--each", "loras/tree", "--each", "tree", "-o", "all")
    assert (code, "two adapters would have one output" in err) == (2, True)
    assert not (here / "all").exists()
    assert call(capsys, "--each", "loras/bad.safetensors", "-o", "all")[0] == 3
    assert not (here / "all").exists()  # of nothing baked nothing stays
