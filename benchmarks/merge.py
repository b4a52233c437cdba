"""Speed and memory of ``paramerge merge`` on checkpoints of SDXL's layout, beside reading them and ``cp``.

    python benchmarks/merge.py --folder /path/with/30GB --rounds 3
    python benchmarks/merge.py --folder /path/with/8GB --shrink 2 --methods weighted-sum ties

With ``--peers PYTHON`` sd-mecha 1.1.8 and mergekit 0.1.5 merge the same files where that interpreter has them
(``pip install sd-mecha==1.1.8 mergekit==0.1.5`` in an environment of its own); what is missing is said.

Before every job its floor is measured: all inputs read once, then ``cp`` and ``sync`` of one. The ratio is
taken of these two: warm cache, whole commands, Python's start included. ``--shrink`` divides all widths: 1 is
SDXL (6.94 GB), 2 about a quarter. The table has medians of the rounds, and the ratios' range.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import inputs
from measure import Cost, run, warm
from rich.console import Console
from rich.table import Table

from paramerge.merge.methods.registry import REGISTRY


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder for inputs and outputs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shrink", type=int, default=1, help="divide all widths by this")
    parser.add_argument("--methods", nargs="*", help="by default all")
    parser.add_argument(
        "--peers", type=Path, metavar="PYTHON", help="an interpreter with sd-mecha and mergekit"
    )
    parser.add_argument("--unhashed", action="store_true", help="hash the inputs in the same pass")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    figures = measure(options)
    show(figures)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run everything; figures by method."""
    wanted = [m for m in REGISTRY.all() if not options.methods or m.name in options.methods]
    count = max(method.models[0] for method in wanted)
    models = [inputs.model_file(options.folder, seed, options.shrink) for seed in range(count)]
    cache = "no-cache" if options.unhashed else "cache"
    os.environ["XDG_CACHE_HOME"] = str(options.folder / cache)
    peers = _peers(options.peers)
    costs: dict[str, list[tuple[Cost, Cost]]] = {}
    for _ in range(options.rounds):
        for method in wanted:
            own = models[: method.models[0]]
            for path in own:
                warm(path)
            if not options.unhashed:
                run([sys.executable, "-c", _REMEMBER, *map(str, own)], options.folder / "log")
            floor = _floor(own, options.folder)
            mine = (_merge(own, method.name, options.folder), floor)
            costs.setdefault(method.name, []).append(mine)
            for peer, methods in peers.items():
                if method.name in methods:
                    theirs = _merge_elsewhere(options.peers, peer, own, method.name, options.folder)
                    costs.setdefault(f"{method.name}, {peer}", []).append((theirs, floor))
            for entry in (options.folder / "no-cache").rglob("*.json"):
                entry.unlink()
    jobs = {name: _figures(pairs) for name, pairs in costs.items()}
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    size = models[0].stat().st_size
    return {"machine": machine, "bytes": size, "rounds": options.rounds, "jobs": jobs}


_REMEMBER = """
import pathlib, sys
from paramerge.files.hashing import file_sha256
for path in sys.argv[1:]:
    file_sha256(pathlib.Path(path))
"""


def _floor(models: list[Path], folder: Path) -> Cost:
    target = folder / "copy.safetensors"
    names = " ".join(f"'{path}'" for path in models)
    cost = run(
        ["sh", "-c", f"cat {names} > /dev/null && cp '{models[0]}' '{target}' && sync '{target}'"],
        folder / "log",
    )
    target.unlink()
    return cost


def _merge(models: list[Path], method: str, folder: Path) -> Cost:
    output = folder / "out.safetensors"
    command = [str(Path(sys.executable).parent / "paramerge"), "merge", *map(str, models)]
    cost = run([*command, "--method", method, "-o", str(output)], folder / "log")
    output.unlink()
    return cost


_PEER_SCRIPT = str(Path(__file__).with_name("peer_merge.py"))


def _peers(python: Path | None) -> dict[str, list[str]]:
    """Each peer that the interpreter has, with the methods of ours that it has; the others are named."""
    found: dict[str, list[str]] = {}
    for peer in ("sd-mecha", "mergekit"):
        if python is None:
            print(f"{peer}: not timed (--peers names no interpreter that has it)")
            continue
        asked = subprocess.run([str(python), _PEER_SCRIPT, peer], check=False, capture_output=True, text=True)
        if asked.returncode:
            print(f"{peer}: not timed ({asked.stderr.strip().splitlines()[-1]})")
        else:
            found[peer] = json.loads(asked.stdout.splitlines()[-1])
    return found


def _merge_elsewhere(python: Path, peer: str, models: list[Path], method: str, folder: Path) -> Cost:
    output = folder / ("peer" if peer == "mergekit" else "peer.safetensors")
    words = [str(python), _PEER_SCRIPT, peer, method, str(output), *map(str, models)]
    cost = run(words, folder / "log")
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink()
    return cost


def _figures(pairs: list[tuple[Cost, Cost]]) -> dict[str, float]:
    ratios = [cost.wall / floor.wall for cost, floor in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "wall_seconds": statistics.median(cost.wall for cost, _ in pairs),
        "cpu_seconds": statistics.median(cost.cpu for cost, _ in pairs),
        "floor_seconds": statistics.median(floor.wall for _, floor in pairs),
        "peak_mib": max(cost.peak for cost, _ in pairs) / 2**20,
    }


def show(figures: dict[str, object]) -> None:
    """Print the table."""
    table = Table(title=f"{figures['bytes']:,} bytes a model, warm cache; {figures['machine']}")
    for name in ("method", "wall / (read + cp + sync)", "seconds", "floor", "CPU seconds", "peak MiB"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, f in dict(figures["jobs"]).items():  # type: ignore[call-overload]
        ratio = f"{f['ratio']:.2f} ({f['ratio_low']:.2f}-{f['ratio_high']:.2f})"
        columns = (f"{f['wall_seconds']:.1f}", f"{f['floor_seconds']:.1f}", f"{f['cpu_seconds']:.1f}")
        table.add_row(name, ratio, *columns, f"{f['peak_mib']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
