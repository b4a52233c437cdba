"""Help: every verb has it, at once."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata

import pytest

import paramerge
from paramerge import shipped
from paramerge.cli.main import COMMANDS, main


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
