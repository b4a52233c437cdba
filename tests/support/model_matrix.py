"""Every model in both layouts with a LoRA in every spelling, and the verdict on each, for docs/layouts.md.

The change of each row of each tensor that a plan has is compared with the product of the factors, in float64.
The layouts are made by the maps that are tested against diffusers' converters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import diffusion_transformers as small
import numpy as np
from baking import plan_of
from checkpoint_files import write_holes
from dialect_files import SPELLINGS, write_lora
from lora_factors import changes, factors_of
from single_files import namings, single_shapes

from paramerge.apply.steps import Step
from paramerge.errors import ParamergeError
from paramerge.models.key_map import KeyMap

MODELS = [(name, n) for name in small.MODELS for n in range(1 + ("hunyuan" in name))]
"""Models, and which of the namings of their single files."""
LAYOUTS = ("ComfyUI's", "bare", "diffusers")
EXACT = "exact"
Shapes = Mapping[str, tuple[int, ...]]


def bases(name: str, key_map: KeyMap, shapes: Shapes, folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """A single file with ComfyUI's prefix, one without, diffusers' layout; whether names are diffusers'."""
    single = single_shapes(key_map, shapes)
    for label, prefix in (("ComfyUI's", "model.diffusion_model."), ("bare", "")):
        path = folder / f"{label}.safetensors"
        yield label, write_holes(path, {prefix + key: s for key, s in single.items()}, "F32"), False
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    write_holes(path, shapes, "F32")
    path.with_name("config.json").write_text(f'{{"_class_name": "{small.MODELS[name].kind}"}}')
    yield "diffusers", path.parent, True


def verdicts(
    name: str, number: int, spellings: tuple[str, ...], layouts: tuple[str, ...], folder: Path
) -> Iterator[tuple[str, str, str]]:
    """Layout, spelling, and ``exact``, ``WRONG`` or the first line of the error."""
    shapes = small.small_shapes(name)
    key_map = namings(name, shapes)[number]
    own, single = factors_of(key_map, shapes)
    for label, base, by_diffusers in bases(name, key_map, shapes, folder):
        if label not in layouts:
            continue
        factors = own if by_diffusers else single
        wanted = {path: up.astype(np.float64) @ down for path, (up, down) in factors.items()}
        for who in spellings:
            spelling = SPELLINGS[who]
            given = single if spelling.original else own
            lora = write_lora(folder / "lora.safetensors", spelling, given)
            try:
                found = changes(plan_of(base, Step("lora", lora)))
            except ParamergeError as error:
                yield label, who, error.what
                continue
            plain = {
                key.removeprefix("model.diffusion_model.").removesuffix(".weight"): value
                for key, value in found.items()
            }
            same = plain.keys() == wanted.keys() and all(
                np.array_equal(plain[path], change) for path, change in wanted.items()
            )
            yield label, who, EXACT if same else "WRONG"


_NAMINGS = {("hunyuan-video", 1): "Tencent's names", ("hunyuan-video-1.5", 1): "Tencent's names"}


def row_titles(name: str, number: int) -> dict[str, str]:
    """The title of a row of the table, by layout."""
    whose = f", {_NAMINGS[name, number]}" if (name, number) in _NAMINGS else ""
    single = f"`{name}`, single file{whose}"
    return {
        "ComfyUI's": f"{single}, with ComfyUI's prefix",
        "bare": single,
        "diffusers": f"`{name}`, diffusers",
    }
