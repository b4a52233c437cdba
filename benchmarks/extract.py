"""``paramerge extract`` on full-size checkpoints: seconds and peak memory for each family.

    python benchmarks/extract.py --folder DIR [--arch sdxl]

The tuned checkpoint is the base with a PaRa of rank 16 (for ``--family para``) or a LoRA of rank 32 baked in,
so the answers are known; all values are random.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paths  # noqa: F401  first: it makes the next one importable
from blueprints import blueprint_of
from random_checkpoint import write_random_checkpoint

from paramerge.checkpoints.layout import open_base
from paramerge.formats import write_para
from paramerge.formats.lora_writer import LoraFactors, write_lora
from paramerge.models.registry import published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--arch", choices=list(published()), default="sd15")
    parser.add_argument("--jobs", nargs="*", default=["lora", "para", "lokr", "krona"])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    base = given.folder / f"{given.arch}.safetensors"
    if not base.exists():
        write_random_checkpoint(blueprint_of(given.arch), base, seed=0)
    for job in given.jobs:
        kind = "para" if job == "para" else "lora"
        adapter = (
            para(given.folder, base, given.arch) if kind == "para" else lora(given.folder, base, given.arch)
        )
        tuned = given.folder / f"tuned-{kind}.safetensors"
        if not tuned.exists():
            run("bake", "--base", base, f"--{kind}", adapter, "-o", tuned, "--json")
        output = given.folder / f"out-{job}.safetensors"
        options = {"lora": ["--rank", "32"], "para": [], "lokr": [], "krona": ["--partial", "--only", "unet"]}
        command = ["extract", "--from", tuned, "--base", base, "-o", output, "--family", job, "--json"]
        seconds, used, peak, text = run(*command, *options[job])
        report = json.loads(text)
        print(
            f"{given.arch} {job:6} {seconds:6.1f} s ({used:.1f} s of CPU)  {peak:5.0f} MiB  "
            f"{len(report['layers'])} layers  "
            f"error {report['error']:.2e}  excess bound {report['excess_bound']:.1e}",
            flush=True,
        )
        output.unlink()


def lora(folder: Path, base: Path, architecture: str) -> Path:
    """A LoRA of rank 32 on every matrix and convolution of the UNet."""
    path = folder / "lora-all-r32.safetensors"
    if not path.exists():
        rng = np.random.default_rng(1)
        layers = {}
        for file in open_base(base).files:
            for name, target in file.targets.items():
                if name.component == "unet":
                    rank = min(32, target.shape[0])
                    up = rng.standard_normal((target.shape[0], rank), np.float32) * 0.02
                    down = rng.standard_normal((rank, int(np.prod(target.shape[1:]))), np.float32) * 0.02
                    layers[name] = LoraFactors(up, down, float(rank), target.shape[2:])
        write_lora(path, layers, architecture=architecture)
    return path


def para(folder: Path, base: Path, architecture: str) -> Path:
    """A PaRa of rank 16 on every matrix and convolution of the UNet."""
    path = folder / "para-all-r16.safetensors"
    if not path.exists():
        rng = np.random.default_rng(2)
        targets = [target for file in open_base(base).files for target in file.targets.values()]
        rows = {t.module: t.shape[0] for t in targets if t.module.component == "unet"}
        bases = {name: rng.standard_normal((d, min(16, d // 4 or 1))) for name, d in rows.items()}
        write_para(path, bases, architecture=architecture)
    return path


def run(*arguments: object) -> tuple[float, float, float, str]:
    """Seconds, CPU seconds, peak MiB and standard output of a command."""
    started = time.monotonic()
    command = [sys.executable, "-m", "paramerge.cli", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {text}")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text


if __name__ == "__main__":
    main()
