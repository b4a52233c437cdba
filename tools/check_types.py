"""Run mypy over the package as it is installed, with cli/ and training/ in their places inside it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"cli": ROOT / "cli", "training": ROOT / "training"}


def main() -> int:
    """Lay the package out by links in a scratch folder and check it there."""
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "paramerge"
        package.mkdir()
        for entry in (ROOT / "paramerge").iterdir():
            (package / entry.name).symlink_to(entry)
        for name, place in PLACES.items():
            (package / name).symlink_to(place)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        command += ["--cache-dir", str(ROOT / ".mypy_cache"), "-p", "paramerge", *sys.argv[1:]]
        return subprocess.run(command, cwd=scratch, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
