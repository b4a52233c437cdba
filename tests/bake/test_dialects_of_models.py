"""Every model, in both layouts, takes a LoRA in every spelling: each row changes by what is meant for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import diffusion_transformers as small
import numpy as np
import pytest
from baking import plan_of
from checkpoint_files import write_holes
from dialect_files import SPELLINGS, write_lora
from lora_factors import changes, factors_of
from single_files import namings, single_shapes

from paramerge.apply.steps import Step
from paramerge.models.key_map import KeyMap

MODELS = [(name, n) for name in small.MODELS for n in range(1 + ("hunyuan" in name))]
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


def check(name: str, number: int, spellings: Collection[str], layouts: Collection[str], folder: Path) -> None:
    """That a LoRA in these spellings changes these layouts row by row as it means to."""
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
            found = changes(plan_of(base, Step("lora", lora)))
            plain = {
                key.removeprefix("model.diffusion_model.").removesuffix(".weight"): value
                for key, value in found.items()
            }
            assert plain.keys() == wanted.keys(), (label, who)
            for path, change in wanted.items():
                assert np.array_equal(plain[path], change), (label, who, path)


@pytest.mark.parametrize("place", range(len(MODELS)))
def test_some_spellings_change_every_row_as_they_mean(place: int, tmp_path: Path) -> None:
    """Others for each model, so that all are tried."""
    some = [*SPELLINGS][place % 5 :: 5]
    layouts = ("ComfyUI's", "diffusers") if place % 2 else ("bare", "diffusers")
    check(*MODELS[place], some, layouts, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), MODELS)
def test_every_spelling_changes_every_row_as_it_means(name: str, number: int, tmp_path: Path) -> None:
    check(name, number, SPELLINGS, ("ComfyUI's", "bare", "diffusers"), tmp_path)
