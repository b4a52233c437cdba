"""Help: every verb has it, at once."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

import paramerge
from paramerge import shipped
from paramerge.cli.main import COMMANDS, SECTIONS, cli, main
from paramerge.cli.verbs import Verb


def test_help_imports_nothing_heavy() -> None:
    """Of any verb, in one process: neither torch nor what draws and trains."""
    script = (
        "import sys\n"
        "from paramerge.cli.main import main\n"
        "for verb in sys.argv[1:]:\n"
        "    try: main([verb, '--help'])\n"
        "    except SystemExit as stop: assert not stop.code, verb\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *COMMANDS], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert shipped.CONTRASTIVE in done.stdout  # a default that comes from the library
    for verb in COMMANDS:
        assert f"{verb} [OPTIONS]" in done.stdout


def test_the_version_is_said_with_those_of_its_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is imported for it: the versions are those that are installed."""
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    first, second = capsys.readouterr().out.splitlines()
    assert exit_.value.code == 0
    assert first == f"paramerge {paramerge.__version__}"
    assert f"torch {metadata.version('torch')}" in second
    assert platform.python_version() in second


def test_the_first_help_is_whole_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each verb, nothing cut off, in groups."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    listed = lines[lines.index("Every day:") :]
    assert not [line for line in listed if line.endswith("...")]
    assert len([line for line in listed if line.startswith("  ")]) == len(COMMANDS)
    for title, verbs in SECTIONS.items():
        place = listed.index(f"{title}:")
        assert [line.split()[0] for line in listed[place + 1 : place + 1 + len(verbs)]] == list(verbs)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_option_of_a_help_is_in_one_group(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first has what everyone needs, the last the mathematics; none is lost or repeated."""
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    command = cli.get_command(click.Context(cli), verb)
    assert isinstance(command, Verb)
    lines = text.splitlines()
    for parameter in command.get_params(click.Context(command)):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            name = parameter.opts[0]
            assert sum(bool(re.match(rf"  {re.escape(name)}(,| |$)", line)) for line in lines) == 1, name
    titles = [line for line in lines if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert titles[0] == "Options:"
    assert "Mathematics:" not in titles or titles[-1] == "Mathematics:" or verb == "train"


def test_a_pipe_gets_whole_lines_without_spaces_at_their_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = tmp_path / ("long-" * 20 + "name.safetensors")
    long.symlink_to(shipped.adapter_file("blueprint"))
    for words in (["inspect", str(long), "--layers"], ["compare", "tree", str(long)], ["sizes"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        lines = capsys.readouterr().out.splitlines()
        assert not stop.value.code
        assert len(lines) > 3 and all(line == line.rstrip() for line in lines)
        assert words == ["sizes"] or any(long.name in line for line in lines)
    assert max(map(len, lines)) > 40
