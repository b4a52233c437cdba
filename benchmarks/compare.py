"""Speed of ``paramerge compare`` on SDXL-size adapters: 794 layers of the UNet, rank 32, random values.

    python benchmarks/compare.py --folder /path/with/3GB --rounds 3

Whole commands are measured (Python's start and reading the files included), warm cache; median and range.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import paths  # noqa: F401  first: it makes the next one importable
from blueprints import sdxl
from measure import Cost, run, warm
from rich.console import Console
from rich.table import Table

from paramerge.formats.lora_writer import LoraFactors, write_lora
from paramerge.formats.native import write_para
from paramerge.models.layer_kinds import layer_kind
from paramerge.models.names import ModuleName


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder for the adapters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    figures = measure(options.folder, options.rounds, options.rank)
    show(figures)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


def measure(folder: Path, rounds: int, rank: int) -> dict[str, object]:
    """Figures by pair of families."""
    shapes = layer_shapes()
    paras = [para_file(folder, shapes, rank, seed) for seed in (1, 2)]
    loras = [lora_file(folder, shapes, rank, seed) for seed in (3, 4)]
    jobs = {"PaRa x PaRa": paras, "PaRa x LoRA": [paras[0], loras[0]], "LoRA x LoRA": loras}
    costs: dict[str, list[Cost]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, files in jobs.items():
            for file in files:
                warm(file)
            command = [str(Path(sys.executable).parent / "paramerge"), "compare", *map(str, files)]
            costs[name].append(run([*command, "--report", str(folder / "report.html")], folder / "log"))
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "layers": len(shapes),
        "rank": rank,
        "rounds": rounds,
        "jobs": {name: _figures(found, jobs[name]) for name, found in costs.items()},
    }


def layer_shapes() -> dict[ModuleName, tuple[int, ...]]:
    """All matrices and convolutions of SDXL's UNet that adapters are trained on."""
    shapes = {}
    for spec in sdxl().component("unet"):
        name = ModuleName("unet", spec.key.removesuffix(".weight"))
        if spec.key.endswith(".weight") and len(spec.shape) > 1 and layer_kind(name) != "other":
            shapes[name] = spec.shape
    return shapes


def para_file(folder: Path, shapes: dict[ModuleName, tuple[int, ...]], rank: int, seed: int) -> Path:
    path = folder / f"para-r{rank}-{seed}.safetensors"
    if not path.exists():
        rng = np.random.default_rng(seed)
        bases = {n: rng.standard_normal((s[0], min(rank, s[0])), np.float32) for n, s in shapes.items()}
        write_para(path, bases, architecture="sdxl")
    return path


def lora_file(folder: Path, shapes: dict[ModuleName, tuple[int, ...]], rank: int, seed: int) -> Path:
    path = folder / f"lora-r{rank}-{seed}.safetensors"
    if not path.exists():
        rng = np.random.default_rng(seed)
        layers = {}
        for name, shape in shapes.items():
            up = rng.standard_normal((shape[0], rank), np.float32) * np.float32(0.02)
            down = rng.standard_normal((rank, math.prod(shape[1:])), np.float32) * np.float32(0.02)
            layers[name] = LoraFactors(up, down, float(rank), shape[2:])
        write_lora(path, layers, architecture="sdxl")
    return path


def _figures(costs: list[Cost], files: list[Path]) -> dict[str, float]:
    walls = [cost.wall for cost in costs]
    return {
        "wall_seconds": statistics.median(walls),
        "wall_low": min(walls),
        "wall_high": max(walls),
        "cpu_seconds": statistics.median(cost.cpu for cost in costs),
        "peak_mib": max(cost.peak for cost in costs) / 2**20,
        "input_mib": sum(file.stat().st_size for file in files) / 2**20,
    }


def show(figures: dict[str, object]) -> None:
    """Print the table."""
    table = Table(title=f"compare, {figures['layers']} layers, rank {figures['rank']}; {figures['machine']}")
    for name in ("pair", "seconds (range)", "CPU seconds", "peak MiB", "input MiB"):
        table.add_column(name, justify="left" if name == "pair" else "right")
    for name, f in dict(figures["jobs"]).items():  # type: ignore[call-overload]
        wall = f"{f['wall_seconds']:.1f} ({f['wall_low']:.1f}-{f['wall_high']:.1f})"
        table.add_row(name, wall, f"{f['cpu_seconds']:.1f}", f"{f['peak_mib']:.0f}", f"{f['input_mib']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
