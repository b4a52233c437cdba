"""Calls that are not understood: each says what is wrong in this project's shape, and what to type."""

from __future__ import annotations

import json

import pytest

from paramerge.cli.main import COMMANDS, main


def refused(capsys: pytest.CaptureFixture[str], words: str) -> dict[str, str]:
    """The error as JSON, which must say the same as the lines."""
    arguments = words.split()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    lines = capsys.readouterr().err
    assert stop.value.code == 2, lines
    assert lines.startswith("error: ") and "\n     next: " in lines
    with pytest.raises(SystemExit) as stop:
        main([arguments[0], "--json", *arguments[1:]])
    printed = json.loads(capsys.readouterr().out)
    assert stop.value.code == printed["error"]["exit_code"] == 2
    for label in ("what", "where", "expected", "found", "next"):
        assert printed["error"].get(label, "") in lines, label
    return dict(printed["error"])


HINTS = {
    "bak": "did you mean bake?",
    "bake --bas x": "did you mean --base",
    "bake --model x": "it is --base here",
    "generate --base x": "it is --model here",
    "bake --base x --lora a --scale 0.8": "--lora FILE@0.8",
    "bake --base x --lora a --force": "it is --overwrite here",
    "bake --base x --lora a --fp16": "it is --dtype fp16 here",
    "bake --base x --lora a b -o c": "--lora a --lora b",
    "bake base lora out": "give --base base --adapter lora -o out",
    "bake base --lora a": "give --base base",
    "bake --base x 'my lora' -o out": "give --adapter",
    "train --lr 1": "it is --learning-rate here",
    "sizes sdxl": "see paramerge sizes --help",
    "convert a --to kohy -o b": "did you mean kohya",
    "bake --merge joined": "did you mean joint?",
    "replay x --set 3 -o y": "see paramerge replay --help",
    "bake --gamma many": "see paramerge bake --help",
    "resize --rank": "see paramerge resize --help",
    "merge": "see paramerge merge --help",
    "inspect": "see paramerge inspect --help",
    "resize a --rank 2": "see paramerge resize --help",
}


@pytest.mark.parametrize("words", HINTS)
def test_hints_say_what_to_type(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert HINTS[words] in refused(capsys, words)["next"]


@pytest.mark.parametrize("verb", [verb for verb in COMMANDS if verb not in ("completion", "ui")])
def test_every_verb_refuses_in_the_same_shape(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, f"{verb} --nonsense-of-no-program")
    assert error["kind"] == "UsageError"
    assert error["where"] == f"paramerge {verb}"
    assert error["found"] == "--nonsense-of-no-program"


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "resize a --rank 2")["expected"] == "-o PATH"
    expected = refused(capsys, "convert a -o b")["expected"]
    assert expected.startswith("--to ") and "kohya|" in expected
    assert refused(capsys, "inspect")["expected"] == "FILE|FOLDER"


def test_an_output_of_train_may_be_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--output" not in refused(capsys, "train -o x")["expected"]
