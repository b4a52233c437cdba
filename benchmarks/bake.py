"""Speed and memory of ``paramerge bake`` on SDXL, beside ``cp`` and diffusers, in one run.

    python benchmarks/bake.py --folder /path/with/30GB --rounds 3 --peers

Before every job ``cp`` and ``sync`` of the base are measured, and the ratio is taken of these two: warm
cache, whole commands, Python's start included. The table has medians of the rounds, and the ratios' range.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import inputs
from measure import Cost, copy_and_sync, run, warm
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder for inputs and outputs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="also diffusers' fuse_lora (once, minutes)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    figures = measure(options.folder, options.rounds, options.peers)
    show(figures)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


def measure(folder: Path, rounds: int, peers: bool) -> dict[str, object]:
    """Run everything; figures by job name."""
    base = inputs.base_file(folder)
    lora, para = inputs.lora_file(folder, base), inputs.para_file(folder, base)
    both = ["--para", str(para), "--lora", str(lora)]
    jobs = {
        "LoRA r16": ["--lora", str(lora)],
        "PaRa r16": ["--para", str(para)],
        "PaRa r16 then LoRA r16": both,
        "the same, --dtype bf16": [*both, "--dtype", "bf16"],
        "the same, base not hashed yet": both,
    }
    costs: dict[str, list[tuple[Cost, Cost]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, arguments in jobs.items():
            warm(base)
            floor = _floor(base, folder)
            costs[name].append((_bake(base, arguments, folder, fresh="hashed" in name), floor))
    result: dict[str, object] = {"machine": _machine(), "bytes": base.stat().st_size, "rounds": rounds}
    result["jobs"] = {name: _figures(pairs) for name, pairs in costs.items()}
    result["jobs"] |= _of_quantised(folder, rounds, base, lora)
    result["jobs"] |= _of_survival(folder, rounds, base, {"LoRA r16": ["--lora", str(lora)], "both": both})
    result["plan from headers, seconds"] = run(
        [*_command(), "--base", str(base), *both, "--dry-run"], folder / "log"
    ).wall
    if peers:
        result["diffusers fuse_lora, fp16"] = _peer(folder, lora, base)
    return result


def _of_quantised(folder: Path, rounds: int, base: Path, lora: Path) -> dict[str, dict[str, float]]:
    """A LoRA into the model with scaled fp8 layers; the floor is the same bake of the fp16 model.

    The ratio is of seconds for each byte written: codes are half as long.
    """
    scaled = inputs.scaled_file(folder, base, lora)
    adapters = ["--lora", str(lora)]
    jobs = {"scaled fp8, changed layers bf16": [], "scaled fp8, --requantise": ["--requantise"]}
    costs: dict[str, list[tuple[Cost, Cost]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, more in jobs.items():
            pair = []
            for model, arguments in ((scaled, [*adapters, *more]), (base, adapters)):
                warm(model)
                cost, size = _sized_bake(model, arguments, folder)
                pair.append(Cost(cost.wall / size * base.stat().st_size, cost.cpu, cost.peak))
            costs[name].append((pair[0], pair[1]))
    return {name: _figures(pairs) for name, pairs in costs.items()}


def _sized_bake(base: Path, arguments: list[str], folder: Path) -> tuple[Cost, int]:
    """A bake's cost, and the bytes that it wrote."""
    output = folder / "out.safetensors"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    run([sys.executable, "-c", _REMEMBER, str(base)], folder / "log")
    cost = run([*_command(), "--base", str(base), *arguments, "-o", str(output)], folder / "log")
    size = output.stat().st_size
    output.unlink()
    return cost, size


def _of_survival(
    folder: Path, rounds: int, base: Path, jobs: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    """Jobs with what the output keeps measured; the floor is the same with nothing measured, CPU seconds.

    CPU seconds tell what other work on the machine hides.
    """
    unmeasured = [sys.executable, str(HERE / "without_survival.py"), "bake"]
    costs: dict[str, list[tuple[Cost, Cost]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, arguments in jobs.items():
            warm(base)
            off = _bake(base, arguments, folder, fresh=False, command=unmeasured)
            on = _bake(base, arguments, folder, fresh=False)
            costs[name].append((replace(on, wall=on.cpu), replace(off, wall=off.cpu)))
    return {f"{name}, survival measured / not (CPU)": _figures(pairs) for name, pairs in costs.items()}


def _floor(base: Path, folder: Path) -> Cost:
    target = folder / "copy.safetensors"
    cost = copy_and_sync(base, target, folder / "log")
    target.unlink()
    return cost


def _bake(
    base: Path, arguments: list[str], folder: Path, *, fresh: bool, command: Sequence[str] = ()
) -> Cost:
    output = folder / "out.safetensors"
    if fresh:  # an empty cache folder: the hash of the base is computed in the same pass
        os.environ["XDG_CACHE_HOME"] = str(folder / "no-cache")
    else:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        run([sys.executable, "-c", _REMEMBER, str(base)], folder / "log")
    words = [*(command or _command()), "--base", str(base), *arguments, "-o", str(output)]
    cost = run(words, folder / "log")
    output.unlink()
    for entry in (folder / "no-cache").rglob("*.json"):
        entry.unlink()
    return cost


_REMEMBER = """
import pathlib, sys
from paramerge.files.hashing import file_sha256
file_sha256(pathlib.Path(sys.argv[1]))
"""


def _peer(folder: Path, lora: Path, base: Path) -> dict[str, float]:
    source, target = inputs.base_folder(folder), folder / "peer"
    for path in source.rglob("*.safetensors"):
        warm(path)
    floor = _floor(base, folder)
    cost = run(
        [sys.executable, str(HERE / "peer_diffusers.py"), str(source), str(lora), str(target)], folder / "log"
    )
    return _figures([(cost, floor)])


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


def _command() -> list[str]:
    return [str(Path(sys.executable).parent / "paramerge"), "bake"]


def _machine() -> str:
    system = f"{platform.machine()}, {platform.system()}"
    return f"{os.cpu_count()} cores, {system}, Python {platform.python_version()}"


def show(figures: dict[str, object]) -> None:
    """Print the table."""
    table = Table(title=f"SDXL, {figures['bytes']:,} bytes, warm cache; {figures['machine']}")
    for name in ("job", "wall / (cp + sync)", "seconds", "cp + sync", "CPU seconds", "peak MiB"):
        table.add_column(name, justify="left" if name == "job" else "right")
    jobs = dict(figures["jobs"])  # type: ignore[call-overload]
    if "diffusers fuse_lora, fp16" in figures:
        jobs["diffusers fuse_lora, fp16"] = figures["diffusers fuse_lora, fp16"]
    for name, f in jobs.items():
        ratio = f"{f['ratio']:.2f} ({f['ratio_low']:.2f}-{f['ratio_high']:.2f})"
        columns = (f"{f['wall_seconds']:.1f}", f"{f['floor_seconds']:.1f}", f"{f['cpu_seconds']:.1f}")
        table.add_row(name, ratio, *columns, f"{f['peak_mib']:.0f}")
    console = Console()
    console.print(table)
    console.print(f"plan from headers (--dry-run): {figures['plan from headers, seconds']:.2f} s")


if __name__ == "__main__":
    main()
