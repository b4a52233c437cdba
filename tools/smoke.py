"""What must work with any packages that pip may choose: an import, a bake, a training step, a picture.

    python tools/smoke.py

On the model that ships, without pytest; tools/versions.py runs it with the lowest and the newest packages.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

import paramerge as pm
from paramerge import shipped
from paramerge.checkpoints.layout import open_base
from paramerge.generation.loading import load_pipeline
from paramerge.generation.sampling import Request, draw
from paramerge.peft import load_para
from paramerge.training.config import TrainConfig
from paramerge.training.loop import train

PACKAGES = ("numpy", "torch", "safetensors", "accelerate", "peft", "diffusers", "transformers", "pillow")


def main() -> None:
    """Do it all in a temporary folder."""
    click.echo(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        para, lora = (shipped.adapter_file(name) for name in ("tree", "blueprint"))
        pm.bake(shipped.model(), [pm.Para(para), pm.Lora(lora, 0.5)], folder / "baked")
        click.echo("a bake: done")
        pictures = folder / "pictures"
        pictures.mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / "a.png")
        for method in ("para", "lora"):
            result = train(
                TrainConfig(
                    model=shipped.model(),
                    instance_folder=pictures,
                    instance_prompt="a noto dog",
                    output=folder / method,
                    method=method,
                    steps=1,
                    train_text_encoder=True,
                    device="cpu",
                )
            )
            click.echo(f"a training step: {method}, loss {result.losses[0]:.4f}")
        pipeline = load_pipeline(open_base(folder / "baked"), torch.float32)
        load_para(pipeline, folder / "para" / "adapter.safetensors")
        (picture,) = draw(pipeline, Request(("a noto dog",), steps=2))[0]
        click.echo(f"a picture: {picture.shape}, mean {picture.mean():.1f}")


if __name__ == "__main__":
    main()
