"""Does paramerge work with the lowest packages that pyproject.toml allows, and with the newest?

    python tools/versions.py newest
    python tools/versions.py lowest --keep torch numpy     # those as constraints.txt has them

A virtual environment of its own in a temporary folder, then tools/smoke.py in it; some minutes, most of them
for the packages. constraints.txt, by which the tests run, lies between the two.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}


def main() -> int:
    """Make the environment, and run the smoke test in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("which", choices=RESOLUTIONS)
    parser.add_argument("--keep", nargs="*", default=[], help="packages to take as constraints.txt has them")
    options = parser.parse_args()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kept.txt").write_text("".join(f"{name}=={pinned[name]}\n" for name in options.keep))
        python = folder / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", folder / "venv")
        run(python, "-m", "pip", "install", "--quiet", "uv")  # pip takes no lowest versions
        install = [python.with_name("uv"), "pip", "install", "--quiet", "--python", python]
        install += ["--resolution", RESOLUTIONS[options.which], "-c", folder / "kept.txt"]
        run(*install, f"{ROOT}[train]")
        return subprocess.run([python, ROOT / "tools" / "smoke.py"], cwd=folder, check=False).returncode


def run(*command: object) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(word) for word in command], check=True)


if __name__ == "__main__":
    sys.exit(main())
