"""Does paramerge work with the lowest packages that pyproject.toml allows, and with the newest?

    python tools/versions.py newest
    python tools/versions.py lowest --keep torch numpy     # those as constraints.txt has them

A virtual environment of its own in a temporary folder, then tools/smoke.py in it; some minutes, most of them
pip's. constraints.txt, by which the tests run, lies between the two.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("train",)
"""The parts of the package that the smoke test needs, beside what all need."""


def main() -> int:
    """Make the environment, and run the smoke test in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("which", choices=("lowest", "newest"))
    parser.add_argument("--keep", nargs="*", default=[], help="packages to take as constraints.txt has them")
    options = parser.parse_args()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    lines = [f"{name}=={pinned[name]}" for name in options.keep]
    if options.which == "lowest":
        lines += [f"{name}=={least}" for name, least in lowest().items() if name not in options.keep]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "constraints.txt").write_text("\n".join(lines) + "\n")
        python = folder / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", folder / "venv")
        install = ["-m", "pip", "install", "--quiet", "-c", folder / "constraints.txt"]
        run(python, *install, f"{ROOT}[{','.join(EXTRAS)}]")
        return subprocess.run([python, ROOT / "tools" / "smoke.py"], cwd=folder, check=False).returncode


def lowest() -> dict[str, str]:
    """The least version of each package that is stated, as ``name>=1.2`` states it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [
        *project["dependencies"],
        *(line for e in EXTRAS for line in project["optional-dependencies"][e]),
    ]
    matches = [re.match(r"([\w-]+)>=([\w.]+)", line) for line in stated]
    return {match[1]: match[2] for match in matches if match}


def run(*command: object) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(word) for word in command], check=True)


if __name__ == "__main__":
    sys.exit(main())
