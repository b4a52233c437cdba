"""What a training step costs with PaRa, PEFT's LoRA and PEFT's DEFT (its PaRa), at equal rank.

    python benchmarks/train_step.py --device cuda            # SDXL's UNet, bfloat16, latents of 128 x 128
    python benchmarks/train_step.py --device cpu --width 8   # an eighth of the widths, float32, 32 x 32

One step is forward, backward and AdamW on random weights and inputs, each method in a process of its own.
The layers are those of one of the paper's subsets; DEFT works on linear layers alone, so it is measured
where a subset has no convolutions (``sao``, ``cao``). ``kept`` is what a step keeps for its backward pass
beside the weights, in distinct storages; ``peak`` is the allocator's on CUDA, the process's on a CPU. Steps
are timed by the clock on CUDA, on a CPU by the processor's time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

METHODS = {
    "none": "the model alone, its inputs' gradient",
    "lora": "PEFT LoRA",
    "para": "PaRa, QR of each layer",
    "para-cholesky": "PaRa, CholeskyQR2 of each layer",
    "para-hoisted": "PaRa, QR of all layers before the step, in batches",
    "para-hoisted-cholesky": "PaRa, CholeskyQR2 of all layers before the step, in batches",
    "deft": "PEFT DEFT (para=True, QR)",
}
LINEAR_SUBSETS = ("sao", "cao", "sca")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, help="divide SDXL's widths by this (1 on CUDA, 8 on a CPU)")
    parser.add_argument("--latents", type=int, help="side of the latents (128 on CUDA, 32 on a CPU)")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--subsets", default="sao,ex-ca", help="comma-separated; see paramerge.models.subsets"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2, help="processes for each method, taken in turn")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SUBSET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    options.width = options.width or (1 if cuda else 8)
    options.latents = options.latents or (128 if cuda else 32)
    if options.one:
        print(json.dumps(one(*options.one, options)))
        return
    figures = {subset: measure(subset, options) for subset in options.subsets.split(",")}
    for subset, found in figures.items():
        show(subset, found, options)
    if options.output:
        about = {key: str(value) for key, value in vars(options).items()}
        options.output.write_text(json.dumps({"options": about, "figures": figures}, indent=2) + "\n")


def measure(subset: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures by method: the median of all steps, and the largest memory."""
    methods = [name for name in METHODS if name != "deft" or subset in LINEAR_SUBSETS]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for _ in range(options.rounds):
        for name in methods:
            command = [sys.executable, __file__, "--one", name, subset, *passed_on(options)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {
            "seconds": statistics.median(t for run in found for t in run["seconds"]),
            "fastest": min(t for run in found for t in run["seconds"]),
            "kept": max(run["kept"] for run in found),
            "peak": max(run["peak"] for run in found),
            "parameters": found[0]["parameters"],
            "layers": found[0]["layers"],
        }
        for name, found in runs.items()
    }


def passed_on(options: argparse.Namespace) -> list[str]:
    names = ("device", "width", "latents", "rank", "batch", "steps")
    flags = [text for name in names for text in (f"--{name}", str(getattr(options, name)))]
    return [*flags, "--checkpointing"] if options.checkpointing else flags


def one(method: str, subset: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one method in this process."""
    torch.manual_seed(0)
    unet, inputs = make_unet(options)
    layers = adapt(unet, method, subset, options.rank)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.0) if trained else None
    if options.checkpointing:
        unet.enable_gradient_checkpointing()
    step = stepper(unet, inputs, optimizer, options)
    kept = kept_for_backward(step, unet)
    cuda = options.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    now = time.perf_counter if cuda else time.process_time
    seconds = []
    for i in range(options.steps + 2):
        began = now()
        step()
        if cuda:
            torch.cuda.synchronize()
        if i >= 2:  # the first ones choose kernels
            seconds.append(now() - began)
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    count = sum(p.numel() for p in trained)
    return {"seconds": seconds, "kept": kept, "peak": peak, "parameters": count, "layers": layers}


def make_unet(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    import paths  # noqa: F401  first: it makes the next one importable
    from blueprint_configs import folder_configs
    from blueprints import sdxl
    from diffusers import UNet2DConditionModel

    config = folder_configs(sdxl(options.width))["unet/config.json"]
    dtype = getattr(options, "dtype", None)  # gpu.py's
    dtype = dtype or (torch.bfloat16 if options.device.startswith("cuda") else torch.float32)
    with torch.device(options.device):
        unet = UNet2DConditionModel.from_config(config).to(dtype)
    unet.requires_grad_(False).train()
    batch, side = options.batch, options.latents
    like = {"device": options.device, "dtype": dtype}
    added = {
        "text_embeds": torch.randn(batch, unet.config.projection_class_embeddings_input_dim
                                   - 6 * unet.config.addition_time_embed_dim, **like),
        "time_ids": torch.tensor([[8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side]] * batch, **like),
    }  # fmt: skip
    return unet, {
        "sample": torch.randn(batch, 4, side, side, **like),
        "timestep": torch.full((batch,), 500, device=options.device),
        "encoder_hidden_states": torch.randn(batch, 77, unet.config.cross_attention_dim, **like),
        "added_cond_kwargs": added,
    }


def adapt(unet: Any, method: str, subset: str, rank: int) -> int:
    """Put the method's adapter on the layers of the subset; the number of layers."""
    from peft import DeftConfig, LoraConfig

    from paramerge.models.subsets import subset as subset_of
    from paramerge.peft import PaRaConfig, hoist_bases, para_layers

    target: Any = subset_of(subset).pattern
    if method == "none":
        return 0
    if method == "lora":
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=target))
    elif method == "deft":
        unet.add_adapter(DeftConfig(r=rank, target_modules=target, para=True, decomposition_method="qr"))
    else:
        kind = "cholesky" if method.endswith("cholesky") else "qr"
        unet.add_adapter(PaRaConfig(r=rank, target_modules=target, init="orthonormal", method=kind))
        if "hoisted" in method:
            hoist_bases(unet)
        return len(list(para_layers(unet)))
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # as trainers do: PaRa keeps float32 by itself
    return sum(isinstance(module, BaseTunerLayer) for module in unet.modules())


def stepper(
    unet: Any, inputs: dict[str, Any], optimizer: Any, options: argparse.Namespace
) -> Callable[[], None]:
    target = torch.randn_like(inputs["sample"]).float()
    device = options.device.partition(":")[0]
    if optimizer is None:
        inputs["sample"].requires_grad_()

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            found = unet(**inputs).sample
        torch.nn.functional.mse_loss(found.float(), target).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def kept_for_backward(step: Callable[[], None], unet: Any) -> int:
    """Bytes of the distinct storages, weights aside, that one step saves for its backward pass."""
    sizes: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(size for place, size in sizes.items() if place not in weights)


def show(subset: str, figures: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    where = (
        torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "CPU"
    )
    base = figures["lora"]
    table = Table(
        title=f"{subset}, rank {options.rank}, SDXL / {options.width}, latents {options.latents}, {where}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for column in ("method", "step, ms", "/ LoRA", "kept, MiB", "/ LoRA", "peak, MiB", "/ LoRA", "trained"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, found in figures.items():
        cells = [METHODS[name]]
        for key, unit in (("seconds", 1e-3), ("kept", 2**20), ("peak", 2**20)):
            cells += [f"{found[key] / unit:.0f}", f"{found[key] / base[key]:.2f}"]
        table.add_row(*cells, f"{found['parameters']:,.0f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
