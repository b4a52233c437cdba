"""The memory of a training step of SDXL, counted: no weights, no arithmetic, no GPU.

    python benchmarks/train_memory.py
    python benchmarks/train_memory.py --resolution 512 --rank 32 --subset sao

One whole step (forward, backward, AdamW) of the trainer's own loss runs on fake tensors, of shapes and dtypes
alone; every storage is counted from its making to its end. What an allocator adds (fragments, its
rounding, cuDNN's workspaces) and CUDA's context, some 0.5 GiB, are not in it. Fake tensors have no values, so
anything in forward or backward that asks for one, as ``.item()`` does, ends the count: there is none.
"""

from __future__ import annotations

import argparse
import json
import weakref
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import paths  # isort: skip  # noqa: F401  it makes the next one importable
from blueprint_configs import folder_configs
from blueprints import sdxl

GIB = 2**30


class Counting(TorchDispatchMode):
    """Bytes of the storages that live: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=1, help="divide SDXL's widths by this")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--subset", default="ex-ca")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    table = Table(title=f"SDXL / {options.width}, PaRa r = {options.rank} {options.subset}, bf16, "
                        f"{options.resolution} px, batch {options.batch}: GiB, counted")  # fmt: skip
    for column in ("gradient checkpointing", "frozen weights", "peak of a step", "layers"):
        table.add_column(column, justify="right")
    figures = []
    for checkpointing in (True, False):
        found = counted(options, checkpointing)
        figures.append(found)
        table.add_row("yes" if checkpointing else "no", f"{found['weights'] / GIB:.2f}",
                      f"{found['peak'] / GIB:.2f}", str(found["layers"]))  # fmt: skip
    Console(width=110).print(table)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


def counted(options: argparse.Namespace, checkpointing: bool) -> dict[str, Any]:
    """Bytes of the frozen weights, and at the peak of the second of two steps."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    from paramerge.training.batches import Batch
    from paramerge.training.config import TrainConfig
    from paramerge.training.methods.para import attach
    from paramerge.training.objective import loss_of
    from paramerge.training.objectives.diffusion import Diffusion
    from paramerge.training.prompts import Prompts

    config = TrainConfig(
        model=Path(), instance_folder=Path(), instance_prompt="x", output=Path(), rank=options.rank,
        subset=options.subset, init="orthonormal", orthonormalise="cholesky",
    )  # fmt: skip
    form = folder_configs(sdxl(options.width))["unet/config.json"]
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule.alphas_cumprod = None  # made again below, as a fake
    counting = Counting()
    with FakeTensorMode(allow_non_fake_inputs=True), counting:
        torch.set_default_dtype(torch.bfloat16)
        try:
            unet = UNet2DConditionModel.from_config(form)
        finally:
            torch.set_default_dtype(torch.float32)
        weights = counting.now
        unet.requires_grad_(False).train()
        trained = attach(Holder(unet), config)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(trained.parameters.values(), 1e-3)
        schedule.alphas_cumprod = torch.rand(1000)
        side, n = options.resolution // 8, options.batch
        batch = Batch(
            torch.randn(n, 4, side, side), torch.randn(n, 4, side, side), torch.zeros(n, dtype=torch.int64),
            ("x",) * n, torch.zeros(n, 6), n,
        )  # fmt: skip
        pooled = form["projection_class_embeddings_input_dim"] - 6 * form["addition_time_embed_dim"]
        prompts = Prompts(
            torch.randn(n, 77, form["cross_attention_dim"]).bfloat16(), torch.randn(n, pooled).bfloat16()
        )
        for _ in range(2):  # the first makes the optimiser's moments
            counting.most = counting.now
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(unet, batch, prompts, Diffusion(schedule), config, torch.bfloat16)
            loss.backward()
            del loss
            torch.nn.utils.clip_grad_norm_(trained.parameters.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    layers = len(trained.parameters)
    return {"checkpointing": checkpointing, "weights": weights, "peak": counting.most, "layers": layers}


class Holder:
    """A pipeline of which there is the UNet alone."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet


if __name__ == "__main__":
    main()
