"""Names of files as people type them: shipped adapters, ``~``, no ending, other strengths, slips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import paramerge as pm
from paramerge import shipped
from paramerge.cli.main import main
from paramerge.cli.paths import spelled
from paramerge.errors import CheckpointError, FileFormatError, MissingFileError
from paramerge.formats import open_adapter

MODEL = shipped.MODEL_NAME


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


@pytest.mark.parametrize(
    "words",
    [
        f"bake --base {MODEL} --para butterfly --lora blueprint@0.5 --dry-run",
        "inspect tree",
        "compare butterfly tree",
        "convert blueprint --to kohya -o out.safetensors",
        "merge butterfly tree -o out.safetensors",
        "resize blueprint --rank 2 -o out.safetensors",
        "extract --from-lora blueprint --rank 2 -o out.safetensors",
    ],
    ids=lambda words: words.split()[0],
)
def test_shipped_adapters_are_names_in_every_verb(
    words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *words.split())
    assert code == 0, err
    assert out


def test_every_shipped_adapter_is_a_name_and_a_file_of_that_name_wins(here: Path) -> None:
    for name in shipped.ADAPTERS:
        assert open_adapter(name).path == shipped.adapter_file(name)
    shutil.copy(shipped.adapter_file("tree"), "butterfly")
    assert open_adapter("butterfly").path == Path("butterfly")


def test_home_and_a_missing_ending_are_understood(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    file = here / "a.safetensors"
    file.touch()
    assert spelled("a") == "a.safetensors"
    assert spelled("a@0.5") == "a.safetensors@0.5"
    assert spelled("~/a@0.5:IN04=1") == f"{file}@0.5:IN04=1"
    assert spelled("b@0.5") == "b@0.5"
    (here / "a").mkdir()
    assert spelled("a") == "a"  # what is there is what is meant
    (here / "~").mkdir()
    assert spelled("~") == "~"


def test_an_output_may_be_in_the_home(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.chdir(here.parent)
    assert call(capsys, "convert", "blueprint", "--to", "kohya", "-o", "~/out.safetensors")[0] == 0
    assert (here / "out.safetensors").is_file()


@pytest.mark.parametrize("text", ["a:0.8", "a=0.8", "<lora:a:0.8>", "<lyco:a:0.8:lbw=MIDD>"])
def test_strengths_of_other_programs_are_named(
    text: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("bake", "--base", MODEL, "--lora", text), ("merge", text, "b", "-o", "c.safetensors")):
        code, _, err = call(capsys, *words)
        assert (code, "give a@0.8" in err) == (2, True), err


def test_only_hints_at_the_pattern_that_was_meant(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, *f"bake --base {MODEL} --lora blueprint --only attn2 --dry-run".split())
    assert (code, "--only '*attn2*'" in err) == (2, True), err


def test_the_current_folder_as_output_is_named_as_such(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.txt").touch()
    code, _, err = call(capsys, "bake", "--base", MODEL, "--lora", "blueprint", "-o", ".")
    assert (code, "the current folder" in err) == (6, True), err
    code, _, err = call(capsys, "convert", "blueprint", "--to", "kohya", "-o", ".")
    assert (code, "such as merged.safetensors" in err) == (6, True), err


def test_a_missing_file_is_pythons_and_names_what_is_like_it(here: Path) -> None:
    (here / "style.safetensors").touch()
    with pytest.raises(FileNotFoundError) as caught:
        pm.open_adapter("styel.safetensors")
    error = caught.value
    assert isinstance(error, MissingFileError) and isinstance(error, FileFormatError)
    assert (error.exit_code, error.filename, error.errno) == (3, "styel.safetensors", 2)
    assert error.hint == "beside it: style.safetensors"
    with pytest.raises(FileNotFoundError) as missing:
        pm.bake("emoji-difusion", ["blueprint"], "out")
    assert isinstance(missing.value, CheckpointError) and MODEL in str(missing.value)
    with pytest.raises(FileNotFoundError, match="no such file") as plain:
        pm.open_adapter("nothing/like/it")
    assert isinstance(plain.value, MissingFileError) and plain.value.hint is None


def test_a_slip_is_in_the_json_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "inspect", "blueprnt", "--json")
    error = json.loads(out)["error"]
    assert (code, error["what"], error["next"]) == (3, "no such file", "of the names that ship: blueprint")
