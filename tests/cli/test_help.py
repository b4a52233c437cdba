"""Help: every verb has it, at once."""

from __future__ import annotations

import subprocess
import sys

from paramerge import shipped
from paramerge.cli.main import COMMANDS


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
