"""SDXL at its true size in each layout, FLUX at its true width: values, bytes, memory; 15 GB of disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from baking import (
    LARGEST_SHARE_OFF,
    add,
    check_close,
    lora_file,
    para_file,
    random_bases,
    random_factors,
    remove,
    rounded,
    shapes_of,
)
from blueprints import sdxl
from checkpoint_files import write_holes
from flux_shapes import single_file_shapes
from random_checkpoint import write_random_checkpoint

from paramerge.checkpoints.layout import open_base
from paramerge.checkpoints.targets import Target
from paramerge.files.header import Header, read_header
from paramerge.files.tensors import stored
from paramerge.files.writer import write_safetensors

pytestmark = pytest.mark.slow

RANK = 16
LARGEST_PEAK = 450 << 20
"""Bytes of resident memory that the command may take, Python and torch included."""


# the process tells itself: what the system says of a child includes what its parent held when it was made
BAKE_AND_TELL_THE_PEAK = """
import atexit, pathlib, re, sys
from paramerge.cli.main import main
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1], file=sys.stderr))
main(sys.argv[1:])
"""


@pytest.fixture(params=["single-file", "diffusers-folder", "sharded-folder", "unet-file"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    layout = request.param.replace("sharded", "diffusers")
    path = tmp_path / ("base" if layout == "diffusers-folder" else "base.safetensors")
    limit = 2_000_000_000 if request.param == "sharded-folder" else None
    write_random_checkpoint(sdxl(), path, layout=layout, max_shard_bytes=limit)
    return path


def test_sdxl(base: Path, tmp_path: Path) -> None:
    """PaRa r16 over the UNet's attention and convolutions, then LoRA r16 over everything there is."""
    shapes = shapes_of(base)
    reduced = [layer for layer in shapes if layer.startswith("unet.") and _is_in_para(layer, shapes[layer])]
    bases = random_bases(shapes, reduced, RANK)
    factors = random_factors(shapes, list(shapes), RANK)
    para = para_file(tmp_path / "a.safetensors", bases, "sdxl")
    lora = lora_file(tmp_path / "b.safetensors", factors, 8.0, two_encoders=True)
    output = tmp_path / f"out{base.suffix}"
    report = _bake("--base", base, "--para", para, "--lora", f"{lora}@0.8", "-o", output)
    assert len(report["layers"]) == len(shapes)
    off = []
    for before, after, targets in _files(base, output):
        touched = {target.key: target for target in targets}
        assert list(after.tensors) == list(before.tensors)
        for number, key in enumerate(before.tensors):
            if key not in touched:
                assert stored(before, key).read_bytes() == stored(after, key).read_bytes(), key
                continue
            assert stored(before, key).read_bytes() != stored(after, key).read_bytes(), key
            target = touched[key]
            layer = str(target.module)
            if number % 25 == 0 and target.rows is None and not target.transposed:
                W = stored(before, key).read().astype(np.float64)
                if layer in bases:
                    W = remove(W, rounded(bases[layer], "F16"))
                up, down = (rounded(factor, "F16") for factor in factors[layer])
                expected = add(W, up, down, 0.8 * 8.0 / RANK)
                off.append(check_close(stored(after, key).read(), expected, layer))
    assert len(off) > 20
    assert np.mean(off) < LARGEST_SHARE_OFF


def test_flux(tmp_path: Path) -> None:
    """Two double and four single blocks in one file: a PaRa by diffusers' names, then a LoRA by kohya's."""
    shapes = single_file_shapes(2, 4)
    base = write_holes(tmp_path / "flux.safetensors", shapes, "BF16")
    layers = [layer.removesuffix(".weight") for layer, shape in shapes.items() if len(shape) == 2]
    factors = random_factors({layer: shapes[f"{layer}.weight"] for layer in layers}, layers, RANK)
    tensors = {}
    for layer, (up, down) in factors.items():
        stem = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
    write_safetensors(tmp_path / "lora.safetensors", tensors, {})
    reached = shapes_of(base)
    reduced = [layer for layer in reached if "single_transformer_blocks" in layer]
    para = para_file(tmp_path / "para.safetensors", random_bases(reached, reduced, RANK), "flux")
    steps = ("--para", para, "--lora", tmp_path / "lora.safetensors")
    report = _bake("--base", base, *steps, "-o", tmp_path / "out.safetensors")
    assert len(report["layers"]) == 62
    header = read_header(tmp_path / "out.safetensors")
    for layer in (
        "double_blocks.0.img_attn.qkv",
        "single_blocks.3.linear1",
        "final_layer.adaLN_modulation.1",
    ):
        up, down = (factor.astype(np.float64) for factor in factors[layer])
        found = stored(header, f"{layer}.weight").read()
        assert (
            check_close(found, up @ down, layer) < LARGEST_SHARE_OFF
        )  # the base is zeros: no direction to lose


def _bake(*options: object) -> dict:
    """The report of a bake whose memory stays within the promise."""
    command = [sys.executable, "-c", BAKE_AND_TELL_THE_PEAK, "bake", *map(str, options), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stderr) * 1024 <= LARGEST_PEAK
    report: dict = json.loads(result.stdout)["report"]
    return report


def _is_in_para(layer: str, shape: tuple[int, ...]) -> bool:
    return (".attn" in layer or len(shape) == 4) and shape[0] >= RANK


def _files(base: Path, output: Path) -> list[tuple[Header, Header, list[Target]]]:
    """Each weight file's header before and after, and what adapters reach in it."""
    return [
        (
            file.header,
            read_header(output / file.relative if output.is_dir() else output),
            list(file.targets.values()),
        )
        for file in open_base(base).files
    ]
