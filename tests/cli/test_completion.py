"""``paramerge completion``, as a shell asks: verbs, options, and files wherever a file is meant."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete, CompletionItem

from paramerge.cli.completion import SHELLS, VARIABLE
from paramerge.cli.main import cli, main


def completed(words: list[str], incomplete: str) -> list[CompletionItem]:
    return BashComplete(cli, {}, "paramerge", VARIABLE).get_completions(words, incomplete)


def test_verbs_and_options() -> None:
    assert [item.value for item in completed([], "mer")] == ["merge"]
    assert [item.value for item in completed(["bake"], "--lor")] == ["--lora"]
    assert {item.value for item in completed(["merge", "--dtype"], "")} >= {"bf16", "fp16"}


@pytest.mark.parametrize(
    "words",
    [
        ["bake", "--lora"],
        ["bake", "--lora", "a.safetensors", "--para"],
        ["bake", "--adapter"],
        ["bake", "--base"],
        ["merge"],
        ["merge", "a.safetensors"],
        ["convert"],
        ["inspect"],
        ["compare"],
        ["replay"],
        ["verify"],
        ["resize"],
    ],
    ids=" ".join,
)
def test_files_are_left_to_the_shell(words: list[str]) -> None:
    (item,) = completed(words, "st")
    assert (item.type, item.value) == ("file", "st")


def test_every_file_of_every_verb_is_completed() -> None:
    """Options and arguments whose placeholder is a file are of a type that completes files."""
    context = click.Context(cli)
    for verb in cli.list_commands(context):
        command = cli.get_command(context, verb)
        assert command is not None
        for parameter in command.params:
            shown = parameter.metavar or ""
            if shown.startswith(("FILE", "FOLDER", "IN", "A ", "A[", "RECIPE", "CONFIG")):
                items = parameter.type.shell_complete(context, parameter, "st")
                assert [item.type for item in items] in (["file"], ["dir"]), (verb, parameter.name)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_call_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["completion", shell])
    assert exit_.value.code == 0
    script = capsys.readouterr().out
    assert f"{VARIABLE}={shell}_complete" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_itself_completes(tmp_path: Path) -> None:
    """The function that the script defines, called as bash calls it, fills COMPREPLY."""
    program = tmp_path / "paramerge"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m paramerge.cli "$@"\n')
    program.chmod(0o755)
    script = f"""
        PATH="{tmp_path}:$PATH"
        eval "$(paramerge completion bash)"
        COMP_WORDS=(paramerge inspect --lay) COMP_CWORD=2
        _paramerge_completion paramerge
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--layers"], done.stderr
