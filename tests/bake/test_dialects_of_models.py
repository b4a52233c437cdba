"""Every model, in both layouts, takes a LoRA in every spelling: each row changes by what is meant for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import diffusion_transformers as small
import numpy as np
import pytest
import torch
from baking import plan_of
from checkpoint_files import write_holes
from dialect_files import SPELLINGS, Array, Factors, write_lora
from numpy.typing import NDArray
from single_files import as_single_file, namings

from paramerge.apply.operations import LoraOp
from paramerge.apply.steps import Step
from paramerge.bake.plan import Plan
from paramerge.models.key_map import KeyMap, single_key

RANK = 2
MODELS = [(name, n) for name in small.MODELS for n in range(1 + ("hunyuan" in name))]
Shapes = Mapping[str, tuple[int, ...]]


def stacked(key_map: KeyMap, state: Mapping[str, Array], shapes: Shapes) -> dict[str, Array]:
    """Values by diffusers' paths under the single file's."""
    tensors = {f"{path}.weight": torch.from_numpy(value) for path, value in state.items()}
    single = as_single_file(key_map, tensors, shapes)
    return {key.removesuffix(".weight"): value.numpy() for key, value in single.items()}


def factors_of(key_map: KeyMap, shapes: Shapes) -> tuple[Factors, Factors]:
    """A LoRA on every linear layer, by diffusers' paths and by the single file's; parts of a stack share
    their down factor."""
    rng = np.random.default_rng(0)
    linear = {
        key.removesuffix(".weight"): shape
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2 and not key.startswith("cond_type")
    }
    up = {path: rng.standard_normal((shape[0], RANK)).astype(np.float32) for path, shape in linear.items()}
    down: dict[str, Array] = {}
    single_down: dict[str, Array] = {}
    for path, shape in linear.items():
        single = str(single_key(key_map, f"{path}.weight")).removesuffix(".weight")
        made = rng.standard_normal((RANK, shape[1])).astype(np.float32)
        down[path] = single_down.setdefault(single, made)
    single_up = stacked(key_map, up, shapes)
    return (
        {path: (up[path], down[path]) for path in linear},
        {path: (value, single_down[path]) for path, value in single_up.items()},
    )


def changes(plan: Plan) -> dict[str, NDArray[np.float64]]:
    """What a plan adds to every tensor, by its key."""
    found: dict[str, NDArray[np.float64]] = {}
    for edit in plan.edits:
        (op,) = edit.ops
        assert isinstance(op, LoraOp)
        tensor = next(f.header.tensors[edit.target.key] for f in plan.base.files)
        total = found.setdefault(edit.target.key, np.zeros((tensor.shape[0], edit.target.shape[1])))
        start, stop = edit.target.rows or (0, tensor.shape[0])
        total[start:stop] += op.module.change().whole()
    return found


def bases(name: str, key_map: KeyMap, shapes: Shapes, folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """A single file with ComfyUI's prefix, one without, diffusers' layout; whether names are diffusers'."""
    meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    single = {key: tuple(value.shape) for key, value in as_single_file(key_map, meta).items()}
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
