"""Random bakes and merges of tiny checkpoints: what recipes are made from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from baking import lora_file, para_file, random_bases, random_factors, shapes_of
from blueprints import sd15
from family_cases import CASES
from random_checkpoint import write_random_checkpoint

LAYERS = (
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
    "unet.down_blocks.0.attentions.1.proj_in",
    "unet.down_blocks.1.resnets.0.conv1",
)
PARAS, LORAS = ("p", "q"), ("l", "m")


def write_inputs(folder: Path) -> None:
    """Three checkpoints, one of them as a folder too, PaRas, LoRAs, and adapters of other families."""
    folder.mkdir()
    for seed, (name, dtype) in enumerate({"one": "F16", "two": "BF16", "three": "F32"}.items()):
        write_random_checkpoint(
            sd15(16, vocabulary=50), folder / f"{name}.safetensors", seed=seed, dtype=dtype
        )
    write_random_checkpoint(
        sd15(16, vocabulary=50), folder / "tree", seed=3, dtype="F16", layout="diffusers-folder"
    )
    shapes = shapes_of(folder / "one.safetensors")
    for seed, name in enumerate(PARAS):
        para_file(folder / f"{name}.safetensors", random_bases(shapes, LAYERS, 2 + seed, seed))
    for seed, name in enumerate(LORAS):
        factors = random_factors(shapes, LAYERS[seed:], 2 + seed, seed)
        lora_file(folder / f"{name}.safetensors", factors, alpha=1.5)
    for seed, case in enumerate(case for case in CASES if case.suits(shapes[LAYERS[0]])):
        case.write(folder / "families" / case.name, {LAYERS[0]: shapes[LAYERS[0]]}, "F16", seed=seed)


def commands(folder: Path, count: int, seed: int = 0) -> Iterator[list[str]]:
    """Random calls without ``-o``, one after the other."""
    rng = np.random.default_rng(seed)
    families = sorted(path for path in (folder / "families").iterdir())

    def name(kind: str, number: object = "") -> str:
        return f"{folder / kind}.safetensors{number}"

    def strength() -> str:
        return f"@{rng.uniform(0, 1):.3f}" if rng.random() < 0.7 else ""

    for _ in range(count):
        steps: list[str] = []
        for _ in range(rng.integers(1, 4)):
            kind = rng.choice(["para", "lora", "adapter"])
            if kind == "para":
                steps += ["--para", name(rng.choice(PARAS), strength())]
            elif kind == "lora":
                blocks = "@0.7:MID=0.5" if rng.random() < 0.2 else strength()
                steps += ["--lora", name(rng.choice(LORAS), blocks)]
            else:
                path = families[rng.integers(len(families))]
                is_peft = (path / "adapter_config.json").exists()
                steps += ["--adapter", f"{path if is_peft else path / 'adapter.safetensors'}{strength()}"]
        options = ["--merge", "sequential"] if rng.random() < 0.3 else []
        options += ["--dtype", str(rng.choice(["fp16", "bf16", "fp32"]))] if rng.random() < 0.3 else []
        options += ["--private"] if rng.random() < 0.2 else []
        options += ["--gamma", "0.5"] if rng.random() < 0.2 else []
        options += ["--lokr-scale", "0.5"] if rng.random() < 0.1 else []
        bases = [name("one"), name("two"), name("three"), os.fspath(folder / "tree")]
        rng.shuffle(bases)
        if rng.random() < 0.6:
            yield ["bake", "--base", bases[0], *steps, *options]
            continue
        at = options.index("--gamma") if "--gamma" in options else len(options)
        ours = options[:at] + options[at + 2 :]  # with gamma a merge of checkpoints needs a PaRa
        method = str(rng.choice(["weighted-sum", "add-difference", "slerp", "ties", "dare"]))
        inputs = bases[: 3 if method == "add-difference" else 2]
        parts = ["--vae", name("three")] if rng.random() < 0.3 else []
        parts += ["--blocks", "MID=0.3"] if rng.random() < 0.3 and method != "slerp" else []
        yield ["merge", *inputs, "--method", method, *parts, *steps, *ours]
