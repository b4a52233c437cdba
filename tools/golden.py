"""Hashes of every verb's outputs on fixed inputs: made before a change of structure, compared after it.

    python tools/golden.py inputs FOLDER            bases, adapters of each form of each family, PaRas, LoRAs
    python tools/golden.py hashes FOLDER > a.json   run the verbs: SHA-256 of each file that they write
    python tools/golden.py hashes FOLDER | diff a.json -
    python tools/golden.py tensors FOLDER           the same of tensors alone, without headers and recipes

The verbs run through the command line alone, so the hashes survive any change of modules' names.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

TO_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
LAYERS = (
    TO_Q,
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
    "unet.down_blocks.0.attentions.1.proj_in",
    "unet.down_blocks.1.resnets.0.conv1",
)
SDXL_LAYERS = (
    "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj",
    "text_encoder.text_model.encoder.layers.1.mlp.fc1",
    TO_Q,
)


def write_inputs(folder: Path) -> None:
    """Write bases and adapters, named by what they are."""
    from baking import lora_file, para_file, random_bases, random_factors, shapes_of, small_model
    from family_cases import CASES, KRONA_CASES

    folder.mkdir(parents=True, exist_ok=True)
    small_model(folder / "sd15-F16.safetensors", dtype="F16")
    small_model(folder / "sd15-BF16.safetensors", dtype="BF16")
    small_model(folder / "sd15-F32.safetensors", dtype="F32")
    small_model(folder / "sdxl-F16.safetensors", "sdxl", dtype="F16")
    small_model(folder / "sd15-folder", layout="diffusers-folder", dtype="F16")
    shapes = shapes_of(folder / "sd15-F16.safetensors")
    for place, case in enumerate(CASES):
        suited = {layer: shapes[layer] for layer in LAYERS if case.suits(shapes[layer])}
        case.write(folder / "families" / case.name, suited, "F16", seed=place)
    wide = {TO_Q: (1280, 1280)}
    for case in KRONA_CASES:
        case.write(folder / "krona" / case.name, wide, "F16")
    for name, base, layers in (("sd15", "sd15-F16", LAYERS), ("sdxl", "sdxl-F16", SDXL_LAYERS)):
        sizes = shapes_of(folder / f"{base}.safetensors")
        for number in (1, 2):
            bases = random_bases(sizes, list(layers), 2 + number, seed=number)
            para_file(folder / f"{name}-para-{number}.safetensors", bases, name)
            factors = random_factors(sizes, list(layers), 3 + number, seed=10 + number)
            two = {"two_encoders": name == "sdxl"}
            lora_file(folder / f"{name}-lora-{number}.safetensors", factors, alpha=2.0, **two)


def commands(folder: Path) -> Iterator[list[str]]:
    """Every command but its ``-o``."""
    families = sorted(p for p in (folder / "families").iterdir())
    folders = {p for p in families if (p / "adapter_config.json").exists()}
    adapter = {p: str(p if p in folders else p / "adapter.safetensors") for p in families}
    for p in families:
        yield ["bake", "--base", f"{folder}/sd15-F16.safetensors", "--adapter", adapter[p]]
        yield ["convert", adapter[p], "--to", "kohya"]
        yield ["convert", adapter[p], "--to", "diffusers"]
        yield ["convert", adapter[p], "--to", "peft"]
        yield ["merge", adapter[p], adapter[p]]
        yield ["resize", adapter[p], "--rank", "2"]
    for p in sorted((folder / "krona").iterdir()):
        yield ["convert", str(p / "adapter.safetensors"), "--to", "kohya"]
    for name in ("sd15-BF16.safetensors", "sd15-F32.safetensors", "sd15-folder"):
        for p in families:
            yield ["bake", "--base", f"{folder}/{name}", "--adapter", f"{adapter[p]}@0.7"]
    for model in ("sd15", "sdxl"):
        base = f"{folder}/{model}-F16.safetensors"
        a, b = (f"{folder}/{model}-para-{n}.safetensors" for n in (1, 2))
        c, d = (f"{folder}/{model}-lora-{n}.safetensors" for n in (1, 2))
        steps = ["--para", a, "--para", b, "--lora", f"{c}@0.8", "--lora", d]
        for options in ([], ["--dtype", "bf16"], ["--merge", "sequential"], ["--gamma", "0.02"]):
            yield ["bake", "--base", base, *steps, *options]
        yield ["merge", a, b]
        yield ["merge", c, d, "--rank", "3"]
        yield ["convert", a, "--to", "kohya", "--base", base]
        for form in ("kohya", "kohya-sgm", "diffusers", "peft"):
            yield ["convert", c, "--to", form]
        yield ["convert", a, "--to", "deft"]
        yield ["resize", c, "--rank", "2"]
        yield ["extract", "--from-lora", c, "--rank", "2"]


def extractions(folder: Path, work: Path) -> Iterator[list[str]]:
    """Extractions of a baked file, which is baked into ``work`` first."""
    base = f"{folder}/sd15-F32.safetensors"
    baked = f"{work}/baked.safetensors"
    run(["bake", "--base", base, "--lora", f"{folder}/sd15-lora-1.safetensors", "-o", baked])
    for family in ("lora", "para", "lokr"):
        yield ["extract", "--from", baked, "--base", base, "--family", family, "--rank", "4"]


def run(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    from paramerge.cli.main import main

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def tensors_of(data: bytes) -> bytes:
    """A safetensors file without its metadata: every key, dtype and shape, and the bytes of all tensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return json.dumps(header, sort_keys=True).encode() + data[8 + length :]


def content(path: Path, alone: bool) -> bytes:
    """The bytes of a file that are compared."""
    data = path.read_bytes()
    return tensors_of(data) if alone and path.suffix == ".safetensors" else data


def hashes(folder: Path, alone: bool = False) -> dict[str, object]:
    """Each command's exit code and the SHA-256 of each file that it wrote; ``alone``, of its tensors."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for number, arguments in enumerate([*commands(folder), *extractions(folder, work)]):
            into_folder = "peft" in arguments or "deft" in arguments or f"{folder}/sd15-folder" in arguments
            output = work / (f"{number}" if into_folder else f"{number}.safetensors")
            code = run([*arguments, "-o", str(output)])
            name = " ".join(arguments).replace(f"{folder}/", "").replace(f"{work}/", "")
            files = sorted(p for p in output.rglob("*") if p.is_file()) if output.is_dir() else [output]
            found[name] = [code] + [
                f"{p.name} {hashlib.sha256(content(p, alone)).hexdigest()}" for p in files if p.exists()
            ]
    return found


def main() -> None:
    """Write the inputs, or print the hashes."""
    verb, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if verb == "inputs":
        write_inputs(folder)
    else:
        json.dump(hashes(folder, alone=verb == "tensors"), sys.stdout, indent=1)
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()
