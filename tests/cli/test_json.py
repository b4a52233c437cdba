"""``--json``: one envelope for every verb and for errors, beside the verb's own keys (``docs/json.md``)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

import paramerge
from paramerge import shipped
from paramerge.cli.call import KEY, SCHEMA
from paramerge.cli.main import COMMANDS, cli, main

ROOT = Path(__file__).resolve().parents[2]
MODEL = shipped.MODEL_NAME
KEYS = ["schema", "version", "verb", "inputs", "outputs", "warnings", "seconds"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], words: str, code: int = 0) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    out = capsys.readouterr().out
    assert (stop.value.code or 0) == code, out
    content: dict[str, Any] = json.loads(out)
    about: dict[str, Any] = content[KEY]
    assert list(about) == KEYS
    assert (about["schema"], about["version"]) == (SCHEMA, paramerge.__version__)
    assert about["verb"] == words.split(maxsplit=1)[0]
    assert about["seconds"] >= 0
    return content


CASES = {
    f"bake --base {MODEL} --para butterfly --lora blueprint@0.5 -o out --json": (
        [MODEL, "butterfly", "blueprint"],
        "out",
        "report",
    ),
    f"bake --base {MODEL} --lora blueprint -o out --dry-run --json": ([MODEL, "blueprint"], "", "plan"),
    "merge butterfly tree -o out --json": (["butterfly", "tree"], "out.safetensors", "layers"),
    "inspect tree --json": (["tree"], "", "family"),
    "compare butterfly tree --report out.html --json": (["butterfly", "tree"], "out.html", "pairs"),
    "convert blueprint --to peft -o out --json": (["blueprint"], "out", "rounding_error"),
    "resize blueprint --rank 2 -o out --json": (["blueprint"], "out.safetensors", "truncation_error"),
    "extract --from-lora blueprint --rank 2 -o out --json": (["blueprint"], "out.safetensors", "empty"),
    "sizes --json": ([], "", "sizes"),
}


@pytest.mark.parametrize("words", CASES, ids=lambda words: " ".join(words.split()[:2]))
def test_every_verb_says_its_call(words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, output, own = CASES[words]
    content = printed(capsys, words)
    about = content[KEY]
    assert sorted(about["inputs"]) == sorted(inputs)
    assert about["outputs"] == ([str(here / output)] if output else [])
    assert all(Path(path).exists() for path in about["outputs"])
    assert own in content


def test_warnings_are_in_it_and_not_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    content = printed(capsys, f"bake --base {MODEL} --lora blueprint@40 -o out --dry-run --json")
    assert content[KEY]["warnings"] == content["plan"]["warnings"] != []
    content = printed(capsys, f"bake --base {MODEL} --lora blueprint@40 -o out --json")
    assert content["plan"]["warnings"]
    assert set(content["plan"]["warnings"]) <= set(content[KEY]["warnings"])


def test_a_call_forgets_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "merge butterfly tree -o out --json")
    assert printed(capsys, "inspect tree --json")[KEY]["outputs"] == []


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        ("inspect none --json", 3, "MissingFileError"),
        ("bake --nonsense --json", 2, "UsageError"),
        (f"bake --base {MODEL} --lora butterfly -o out --json", 4, "FamilyError"),
    ],
)
def test_errors_have_it_too(words: str, code: int, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = printed(capsys, words, code)
    assert list(content) == [KEY, "error"]
    assert (content["error"]["kind"], content["error"]["exit_code"]) == (kind, code)


def test_the_document_names_every_key() -> None:
    text = (ROOT / "docs" / "json.md").read_text()
    assert all(
        f"`{key}`" in text for key in (KEY, *KEYS, "kind", "what", "where", "expected", "found", "next")
    )
    for verb in COMMANDS:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        names = {p.name for p in command.get_params(click.Context(command))}
        assert ("as_json" in names) == bool(re.search(rf"^\| `{verb}` \|", text, re.MULTILINE)), verb
