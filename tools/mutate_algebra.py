"""Run mutmut over paramerge/algebra in a scratch folder, on all mutants or a random sample of them."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("support/strategies.py", "algebra", "theorems")
SETTINGS = """
[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = "--import-mode=importlib -p no:cacheprovider"
pythonpath = ["tests/support"]
filterwarnings = ["error::RuntimeWarning:paramerge"]

[tool.mutmut]
source_paths = ["paramerge"]
only_mutate = ["paramerge/algebra/*"]
do_not_mutate_patterns = ["hint="]
pytest_add_cli_args = ["-x", "-q"]
pytest_add_cli_args_test_selection = ["tests/algebra", "tests/theorems"]
"""
SURVIVED, KILLED = (0,), (1, 3)


def main() -> int:
    """Lay the folder out, let mutmut list and run the mutants, print the score and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="scratch folder; an earlier run in it is taken up again")
    parser.add_argument("--sample", type=int, help="run this many mutants, drawn uniformly (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--examples", type=int, default=8, help="hypothesis examples for each law")
    parser.add_argument("--children", type=int, default=1, help="mutants run side by side")
    options = parser.parse_args()
    lay_out(options.folder)
    environment = os.environ | {"PARAMERGE_EXAMPLES": str(options.examples), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(options.children)]
    # a name that no mutant has: mutmut lists the mutants and what covers them, and stops
    subprocess.run([*command, "none"], cwd=options.folder, env=environment, check=False, capture_output=True)
    names = sorted(results(options.folder))
    if options.sample is not None:
        random.Random(options.seed).shuffle(names)
        names = names[: options.sample]
    subprocess.run([*command, *names], cwd=options.folder, env=environment, check=True)
    return report(options.folder, names)


def lay_out(folder: Path) -> None:
    """Copy the package, without the parts that live elsewhere, and the tests of the algebra."""
    ignored = shutil.ignore_patterns("__pycache__")
    for source, target in [
        (ROOT / "paramerge", folder / "paramerge"),
        *((ROOT / "tests" / name, folder / "tests" / name) for name in TESTS),
    ]:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy2(source, target)
    (folder / "pyproject.toml").write_text(SETTINGS)


def results(folder: Path) -> dict[str, int | None]:
    """The exit code of the tests for each mutant, None where they did not run."""
    found: dict[str, int | None] = {}
    for path in (folder / "mutants" / "paramerge" / "algebra").glob("*.meta"):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


def report(folder: Path, names: list[str]) -> int:
    """Print how many of these mutants were killed, by module, and which survived."""
    codes = results(folder)
    modules: dict[str, Counter[str]] = {}
    for name in names:
        code = codes[name]
        outcome = "survived" if code in SURVIVED else "killed" if code in KILLED else f"other ({code})"
        modules.setdefault(name.split(".")[2], Counter())[outcome] += 1
    total: Counter[str] = sum(modules.values(), Counter())
    survivors = sorted(name for name in names if codes[name] in SURVIVED)
    lines = [f"{module:15} {dict(outcomes)}" for module, outcomes in sorted(modules.items())]
    lines += [f"{dict(total)}: {1 - len(survivors) / len(names):.1%} of {len(names)} killed", *survivors]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
