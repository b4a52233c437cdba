"""The inputs of the benchmarks: full-size checkpoints and adapters of true keys and shapes, random values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paths  # noqa: F401  first: it makes the next one importable
from blueprints import sdxl
from random_checkpoint import write_random_checkpoint

import paramerge as pm
from paramerge.checkpoints.layout import open_base
from paramerge.checkpoints.targets import Target
from paramerge.files.writer import write_safetensors
from paramerge.formats.native import write_para
from paramerge.models.names import ModuleName

_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def base_file(folder: Path) -> Path:
    """SDXL as a single file, 2,515 tensors, 6.94 GB in fp16."""
    path = folder / "sdxl.safetensors"
    if not path.exists():
        write_random_checkpoint(sdxl(), path, seed=0)
    return path


def model_file(folder: Path, seed: int, shrink: int = 1) -> Path:
    """A model of SDXL's keys as a single file, all widths divided by ``shrink``."""
    path = folder / f"model-{seed}-{shrink}.safetensors"
    if not path.exists():
        write_random_checkpoint(sdxl(shrink), path, seed=seed)
    return path


def scaled_file(folder: Path, base: Path, lora: Path) -> Path:
    """The same model with the Linear layers of its blocks as scaled fp8."""
    path = folder / "scaled.safetensors"
    if not path.exists():
        pm.bake(base, [pm.Lora(lora, 0)], path, quantise="fp8")
    return path


def base_folder(folder: Path) -> Path:
    """The same model as a diffusers folder."""
    path = folder / "sdxl"
    if not path.exists():
        write_random_checkpoint(sdxl(), path, seed=0, layout="diffusers-folder")
    return path


def lora_file(folder: Path, base: Path, rank: int = 16) -> Path:
    """A kohya LoRA over UNet attention and feed-forward and both text encoders."""
    path = folder / f"lora-r{rank}.safetensors"
    if path.exists():
        return path
    rng = np.random.default_rng(1)
    tensors: dict[str, np.ndarray] = {}
    for name, target in _targets(base).items():
        if not _in_lora(name):
            continue
        stem = _KOHYA[name.component] + name.path.replace(".", "_")
        columns = int(np.prod(target.shape[1:]))
        tensors[f"{stem}.lora_up.weight"] = _normal(rng, (target.shape[0], rank), 0.02)
        tensors[f"{stem}.lora_down.weight"] = _normal(rng, (rank, columns), 0.02)
        tensors[f"{stem}.alpha"] = np.array(rank, np.float16)
    write_safetensors(path, tensors, {"ss_network_module": "networks.lora"})
    return path


def para_file(folder: Path, base: Path, rank: int = 16) -> Path:
    """A PaRa over all matrices and convolutions of the UNet (794 layers in SDXL)."""
    path = folder / f"para-r{rank}.safetensors"
    if not path.exists():
        rng = np.random.default_rng(2)
        targets = {name: t for name, t in _targets(base).items() if name.component == "unet"}
        bases = {name: _normal(rng, (t.shape[0], min(rank, t.shape[0])), 1.0) for name, t in targets.items()}
        write_para(path, bases, architecture="sdxl")
    return path


def _targets(base: Path) -> dict[ModuleName, Target]:
    return {name: target for file in open_base(base).files for name, target in file.targets.items()}


def _in_lora(name: ModuleName) -> bool:
    if name.component != "unet":
        return ".layers." in name.path
    return ".attn" in name.path or ".ff." in name.path or name.path.endswith(("proj_in", "proj_out"))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return (rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(np.float16)
