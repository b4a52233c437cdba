"""Training steps of SDXL on a GPU, in one command of at most eight minutes and without a network.

    python benchmarks/gpu.py --output gpu.json
    python benchmarks/gpu.py --tiny --device cpu     # a 32nd of the widths: proves that the command works

SDXL's configuration with random weights in fp16 and bf16: PaRa with a QR of each layer, with QRs of all
layers in batches, and with CholeskyQR in batches, against PEFT's LoRA and DEFT (on attention alone, which
DEFT is for). Each is measured as a trainer runs it: autocast, a gradient scaler in fp16, clipping, AdamW in
float32.

``step`` is the median of the steps, ``peak`` the allocator's (on a CPU the process's), ``grows`` how much
more is allocated after the last step than after the third, ``leak`` the largest share of a layer's output
that lies in the removed directions still, ``|K^T y| / |y_0|``: in float32, before the output is rounded, and
after. What there is no time for is left out and said so; the most important comes first.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from train_step import adapt, make_unet

METHODS = {
    "lora": "PEFT LoRA",
    "para-hoisted-cholesky": "PaRa, CholeskyQR of all layers in batches",
    "para-hoisted": "PaRa, QR of all layers in batches",
    "para": "PaRa, QR of each layer",
    "deft": "PEFT DEFT (para=True, QR)",
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LINEAR = ("sao", "cao", "sca")
"""Subsets without convolutions."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a 32nd of the widths, latents of 16 x 16")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--subsets", default="sao,ex-ca", help="see paramerge.models.subsets")
    parser.add_argument("--dtypes", default="bf16,fp16")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", metavar="BACKEND", help="torch.compile with this backend, as inductor")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="no run begins that may not end in this time"
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    options.width, options.latents = (32, 16) if options.tiny else (1, 128)
    rows = list(measured(options))
    about = {"where": where(options), "torch": torch.__version__, "options": plain(options), "runs": rows}
    show(rows, about)
    if options.output:
        options.output.write_text(json.dumps(about, indent=2) + "\n")


def plain(options: argparse.Namespace) -> dict[str, Any]:
    return {
        key: value if isinstance(value, int | float) else str(value) for key, value in vars(options).items()
    }


def where(options: argparse.Namespace) -> str:
    if options.device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads"


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each dtype, subset and method; those without time or memory say so."""
    began, longest = time.monotonic(), 0.0
    for dtype in options.dtypes.split(","):
        for subset in options.subsets.split(","):
            for method in METHODS:
                row = {"dtype": dtype, "subset": subset, "method": method}
                if method == "deft" and subset not in LINEAR:
                    continue
                if time.monotonic() - began + longest > 60 * options.minutes:
                    yield {**row, "left_out": "no time"}
                    continue
                start = time.monotonic()
                try:
                    yield {**row, **one(method, subset, DTYPES[dtype], options)}
                except torch.OutOfMemoryError:
                    yield {**row, "left_out": "out of memory"}
                longest = max(longest, time.monotonic() - start)
                gc.collect()
                if options.device.startswith("cuda"):
                    torch.cuda.empty_cache()


def one(method: str, subset: str, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one method in this process."""
    torch.manual_seed(0)
    options.dtype = dtype
    unet, inputs = make_unet(options)
    layers = adapt(unet, method, subset, options.rank)
    trained = [p for p in unet.parameters() if p.requires_grad]
    if options.checkpointing:
        unet.enable_gradient_checkpointing()
    if options.channels_last:
        unet.to(memory_format=torch.channels_last)
    if options.compile:
        unet.compile(backend=options.compile)
    step = stepper(unet, inputs, trained, dtype, options)
    cuda = options.device.startswith("cuda")
    for _ in range(3):  # the first ones choose kernels and make the moments
        step()
    before = allocated(options)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    exact, rounded = leaks(unet, inputs, dtype, options)
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "peak": torch.cuda.max_memory_allocated() if cuda else allocated(options),
        "grows": allocated(options) - before,
        "leak": exact,
        "leak_rounded": rounded,
        "parameters": sum(p.numel() for p in trained),
        "layers": layers,
    }


def allocated(options: argparse.Namespace) -> int:
    if options.device.startswith("cuda"):
        return torch.cuda.memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def stepper(
    unet: Any, inputs: dict[str, Any], trained: list[Any], dtype: torch.dtype, options: argparse.Namespace
) -> Callable[[], None]:
    """One step of training, as accelerate does it; nothing in it waits for the device but the scaler."""
    device = options.device.partition(":")[0]
    target = torch.randn_like(inputs["sample"]).float()
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def step() -> None:
        with torch.autocast(device, dtype):
            found = unet(**inputs).sample
        loss = torch.nn.functional.mse_loss(found.float(), target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def leaks(
    unet: Any, inputs: dict[str, Any], dtype: torch.dtype, options: argparse.Namespace
) -> tuple[float | None, float | None]:
    """The largest leak of any layer in float32 and as rounded to ``dtype``; None where nothing is removed."""
    exact, rounded = [], []

    def look(K: torch.Tensor, layer: Any) -> Callable[..., None]:
        def hook(module: Any, given: tuple[Any, ...], output: torch.Tensor) -> None:
            bias = layer.base_layer.bias
            y = output if bias is None else output - channels(bias, output)
            whole = layer.base_layer(given[0]).float()
            whole = whole if bias is None else whole - channels(bias, whole)
            rounded.append(float(share(K, y.float(), whole)))
            if hasattr(layer, "para_B"):
                mine = layer._project(
                    whole + (0 if bias is None else channels(bias, whole)), layer._steps(["default"])[0]
                )
                mine = mine if bias is None else mine - channels(bias, mine)
                exact.append(float(share(K, mine, whole)))

        return hook

    hooks = []
    for module in unet.modules():
        B = getattr(module, "para_B", None) or getattr(module, "deft_P", None)
        if B:
            K = torch.linalg.qr(next(iter(B.values())).double())[0]
            hooks.append(module.register_forward_hook(look(K, module)))
    if not hooks:
        return None, None
    with torch.autocast(options.device.partition(":")[0], dtype):
        getattr(unet, "_orig_mod", unet)(**inputs)
    for hook in hooks:
        hook.remove()
    return max(exact, default=None), max(rounded)


def channels(bias: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return bias[:, None, None] if y.dim() == 4 else bias


def share(K: torch.Tensor, y: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """``|K^T y| / |whole|`` in float64, over a linear layer's last axis or a convolution's second."""
    rows = [z.movedim(1, -1) if z.dim() == 4 else z for z in (y, whole)]
    return torch.linalg.norm(rows[0].double() @ K) / torch.linalg.norm(rows[1].double())


def show(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    options = about["options"]
    table = Table(
        title=f"SDXL / {options['width']}, rank {options['rank']}, batch {options['batch']}, latents "
        f"{options['latents']}, {about['where']}, torch {about['torch']}"
    )
    for column in ("dtype", "subset", "method", "step, ms", "/ LoRA", "peak, MiB", "/ LoRA", "grows, MiB",
                   "leak", "rounded", "trained"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("dtype", "subset", "method") else "right")
    for row in rows:
        names = [row["dtype"], row["subset"], METHODS[row["method"]]]
        if "left_out" in row:
            table.add_row(*names, row["left_out"])
            continue
        base = next(each for each in rows if (each["dtype"], each["subset"]) == (row["dtype"], row["subset"]))
        cells = []
        for key, unit in (("seconds", 1e-3), ("peak", 2**20)):
            ratio = f"{row[key] / base[key]:.2f}" if key in base else ""
            cells += [f"{row[key] / unit:.0f}", ratio]
        leaks = ["" if row[key] is None else f"{row[key]:.1e}" for key in ("leak", "leak_rounded")]
        table.add_row(*names, *cells, f"{row['grows'] / 2**20:.1f}", *leaks, f"{row['parameters']:,}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
