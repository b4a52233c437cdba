"""Make the inputs of the README's first command: a small checkpoint, a PaRa and a LoRA of random numbers.

The checkpoint has every key of an SD1.5 single file (UNet, text encoder, VAE) at an eighth of the widths: it
shows what a bake does to a real layout, not what a model draws.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from paramerge.checkpoints.blueprint import sd15
from paramerge.checkpoints.hashing import file_sha256
from paramerge.checkpoints.layout import open_base
from paramerge.checkpoints.random_checkpoint import write_random_checkpoint
from paramerge.checkpoints.writer import write_safetensors
from paramerge.formats.native import write_para

RANK = 4
SHRINK = 8


def main(folder: Path) -> None:
    """Write base.safetensors, subject.safetensors (PaRa) and style.safetensors (LoRA, kohya's dialect)."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.safetensors"
    write_random_checkpoint(sd15(SHRINK), base, seed=0)
    (file,) = open_base(base).files
    rng = np.random.default_rng(0)
    attention = {name: target for name, target in file.targets.items() if ".attn" in name.path}
    bases = {name: rng.standard_normal((target.shape[0], RANK)) for name, target in attention.items()}
    write_para(folder / "subject.safetensors", bases, architecture="sd15", base_sha256=file_sha256(base))
    tensors: dict[str, np.ndarray] = {}
    for name, target in attention.items():
        stem = "lora_unet_" + name.path.replace(".", "_")
        tensors[f"{stem}.lora_up.weight"] = rng.normal(0, 0.02, (target.shape[0], RANK)).astype(np.float16)
        tensors[f"{stem}.lora_down.weight"] = rng.normal(0, 0.1, (RANK, target.shape[1])).astype(np.float16)
        tensors[f"{stem}.alpha"] = np.array(RANK / 2, np.float16)
    write_safetensors(folder / "style.safetensors", tensors, {"ss_network_module": "networks.lora"})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output"))
