"""Windows' ways, as far as Linux can play them (``windows_like.py``): the same bytes, nothing left."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from paramerge.cli.main import main
from paramerge.errors import OutputError
from paramerge.files import outputs, writer
from paramerge.files.file_names import fault_on_windows

SHIM = REPOSITORY / "tests" / "support" / "windows_like.py"
ADAPTERS = REPOSITORY / "paramerge" / "assets" / "adapters"
UNET = REPOSITORY / "paramerge" / "assets" / "emoji-diffusion" / "unet"
BUTTERFLY, TREE, BLUEPRINT = (ADAPTERS / f"{name}.safetensors" for name in ("butterfly", "tree", "blueprint"))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux plays the other system here")


def run(folder: Path, *calls: list[object]) -> tuple[list[int], str]:
    """The exit codes of command lines on the other system, one process for all, and what they print."""
    lines = json.dumps([[str(part) for part in call] for call in calls])
    done = subprocess.run(
        [sys.executable, str(SHIM), lines],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / ".cache"), "PYTHONIOENCODING": "utf-8"},
    )
    *_, codes = done.stdout.splitlines()
    found: list[int] = json.loads(codes)
    return found, done.stdout + done.stderr


def same(a: Path, b: Path) -> bool:
    if a.is_file():
        return filecmp.cmp(a, b, shallow=False)
    compared = filecmp.dircmp(a, b)
    return not (compared.left_only or compared.right_only or compared.diff_files) and all(
        same(a / name, b / name) for name in compared.common_dirs
    )


CALLS: dict[str, list[object]] = {
    "baked.safetensors": [
        "bake",
        "--base",
        UNET / "diffusion_pytorch_model.safetensors",
        "--para",
        BUTTERFLY,
    ],
    "baked": ["bake", "--base", "emoji-diffusion", "--para", BUTTERFLY, "--lora", BLUEPRINT],
    "merged.safetensors": ["merge", BUTTERFLY, TREE],
    "peft": ["convert", BLUEPRINT, "--to", "peft"],
    "small.safetensors": ["resize", BLUEPRINT, "--rank", "2"],
}
"""By their outputs, files and folders."""


def test_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New, into an empty folder where it is a folder, and over an older output; nothing else is left."""
    here, there = tmp_path / "linux", tmp_path / "windows"
    here.mkdir()
    there.mkdir()
    for name in ("baked", "peft"):
        (there / name).mkdir()
    again = [[*call, "-o", name, "--overwrite"] for name, call in CALLS.items()]
    codes, said = run(there, *([*call, "-o", name] for name, call in CALLS.items()), *again)
    assert codes == [0] * len(codes), said
    monkeypatch.chdir(here)
    for name, call in CALLS.items():
        with pytest.raises(SystemExit):
            main([str(part) for part in [*call, "-o", name]])
        assert same(here / name, there / name), name
    assert {path.name for path in there.iterdir()} == {*CALLS, ".cache"}


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    codes, said = run(tmp_path, ["merge", BUTTERFLY, TREE, "-o", "out.safetensors"])
    assert codes == [6]
    assert "exists already" in said
    assert (tmp_path / "out.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name", ["nul.safetensors", "COM1", "a:b.safetensors", "what?.png", "end.", "end ", 'quo"te', "tab\there"]
)
def test_names_that_mean_something_else_there_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault_on_windows(name)
    with pytest.raises(OutputError, match="cannot have this name on Windows"):
        monkeypatch.setattr(outputs.os, "name", "nt")
        try:
            outputs._refuse_name(tmp_path / name)
        finally:
            monkeypatch.undo()


@pytest.mark.parametrize(
    "name", ["style.safetensors", "console.safetensors", "a b", "猫", "..", ".hidden", "sd15+style@0.8"]
)
def test_ordinary_names_are_not(name: str) -> None:
    assert fault_on_windows(name) is None


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_a_console_without_most_letters(encoding: str, tmp_path: Path) -> None:
    """What cannot be printed there is printed as its number, and the work is done."""
    named = tmp_path / "猫 →.safetensors"
    named.write_bytes(BUTTERFLY.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "paramerge.cli", "inspect", str(named)],
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u732b" in done.stdout


def test_a_file_that_is_closed_before_its_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed once, whether that goes well or not."""
    monkeypatch.setattr(writer, "RENAMES_OPEN_FILES", False)
    monkeypatch.setattr(writer, "_open_unnamed", lambda folder: None)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    writer.write_safetensors(tmp_path / "a.safetensors", {"x": np.arange(4.0)})
    with pytest.raises(OutputError):
        writer.write_safetensors(tmp_path / "a.safetensors", {"x": np.zeros(4)}, overwrite=False)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
