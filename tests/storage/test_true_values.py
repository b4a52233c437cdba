"""A quantised checkpoint does in every verb what the plain one of its values does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from baking import load, lora_file, para_file, plan_of, random_bases, random_factors, shapes_of, small_model
from family_cases import CASES, Case

import paramerge as pm
from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.files.writer import write_safetensors

LAYERS = [
    f"unet.down_blocks.{down}.attentions.{number}.transformer_blocks.0.{kind}.{part}"
    for down in (1, 2)
    for number in (0, 1)
    for kind in ("attn1", "attn2")
    for part in ("to_q", "to_v", "to_out.0")
]
F8 = ml_dtypes.float8_e4m3fn


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose matrices in the UNet are scaled fp8, by rows and blocks; the plain one of its values."""
    folder = tmp_path_factory.mktemp("pair")
    stored = load(small_model(folder / "model.safetensors")).tensors
    quantised, plain = {}, {}
    for number, (key, array) in enumerate(stored.items()):
        if not (key.startswith("model.diffusion_model.") and key.endswith(".weight") and array.ndim == 2):
            quantised[key] = plain[key] = array
            continue
        values = array.astype(np.float64)
        rows, columns = values.shape
        down, across = (rows, 1) if number % 2 or rows % 8 or columns % 8 else (rows // 8, columns // 8)
        blocks = values.reshape(down, rows // down, across, columns // across)
        scale = 2.0 ** np.ceil(np.log2(np.abs(blocks).max((1, 3)) / 448))
        codes = (blocks / scale[:, None, :, None]).astype(np.float32).astype(F8)
        quantised[key] = codes.reshape(values.shape)
        quantised[f"{key.removesuffix('.weight')}.weight_scale"] = scale.astype(np.float32)
        exact = codes.astype(np.float64) * scale[:, None, :, None]
        plain[key] = exact.reshape(values.shape).astype(np.float32)  # a power of two: nothing is rounded
    write_safetensors(folder / "quantised.safetensors", quantised, {})
    write_safetensors(folder / "plain.safetensors", plain, {})
    return folder / "quantised.safetensors", folder / "plain.safetensors"


def one_of_each_family() -> list[Case]:
    found: dict[str, Case] = {}
    for case in CASES:
        if case.config is None:
            found.setdefault(case.family, case)
    return list(found.values())


def same_tensors(one: Path, other: Path) -> None:
    first, second = load(one), load(other)
    assert first.raw.keys() == second.raw.keys()
    assert [key for key in first.raw if first.raw[key] != second.raw[key]] == []


def test_every_family_acts_on_the_true_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shapes = shapes_of(pair[0])
    assert shapes == shapes_of(pair[1])
    steps = []
    for case, layer in zip(one_of_each_family(), LAYERS, strict=False):
        path, _ = case.write(tmp_path / case.name, {layer: shapes[layer]})
        steps.append(Step("adapter", path))
    steps.insert(0, Step("para", para_file(tmp_path / "para.safetensors", random_bases(shapes, LAYERS, 4))))
    assert len(steps) >= 10
    for base, name in zip(pair, ("quantised", "plain"), strict=True):
        bake(plan_of(base, *steps, dtype="fp32"), tmp_path / f"{name}.safetensors")
    same_tensors(tmp_path / "quantised.safetensors", tmp_path / "plain.safetensors")


def test_an_extraction_finds_the_change_of_the_true_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    factors = random_factors(shapes_of(pair[0]), LAYERS[:4], 4)
    lora = lora_file(tmp_path / "lora.safetensors", factors)
    bake(plan_of(pair[0], Step("lora", lora)), tmp_path / "tuned.safetensors")
    tuned, found = tmp_path / "tuned.safetensors", tmp_path / "found.safetensors"
    report = pm.extract(tuned, pair[0], found, family="lora", rank=4, dtype="fp32")
    assert len(report.layers) == 4
    assert report.error < 0.05  # what bf16 rounds is of full rank
    (pairs,) = pm.compare([lora, found]).pairs
    assert min(layer.cosine for layer in pairs.layers) > 0.99


@pytest.mark.parametrize("family", ["lora", "lokr"])
def test_an_extraction_is_that_of_the_plain_model(
    family: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    factors = random_factors(shapes_of(pair[0]), LAYERS[:3], 4)
    lora = lora_file(tmp_path / "lora.safetensors", factors)
    bake(plan_of(pair[1], Step("lora", lora)), tmp_path / "tuned.safetensors")
    for base, name in zip(pair, ("quantised", "plain"), strict=True):
        output = tmp_path / f"{name}-found.safetensors"
        rank = 4 if family == "lora" else None
        pm.extract(tmp_path / "tuned.safetensors", base, output, family=family, rank=rank)
    same_tensors(tmp_path / "quantised-found.safetensors", tmp_path / "plain-found.safetensors")


def test_a_para_becomes_the_same_lora(pair: tuple[Path, Path], tmp_path: Path) -> None:
    para = para_file(tmp_path / "para.safetensors", random_bases(shapes_of(pair[0]), LAYERS[:3], 4))
    for base, name in zip(pair, ("quantised", "plain"), strict=True):
        pm.convert([para], tmp_path / f"{name}.safetensors", to="kohya", base=base)
    same_tensors(tmp_path / "quantised.safetensors", tmp_path / "plain.safetensors")


def test_a_comparison_sees_the_true_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shapes = shapes_of(pair[0])
    bases = [random_bases(shapes, LAYERS[:3], 4, seed) for seed in (0, 1)]
    paras = [para_file(tmp_path / f"{number}.safetensors", made) for number, made in enumerate(bases)]
    first, second = (pm.compare(paras, base=base) for base in pair)
    assert repr(asdict(first.pairs[0])["layers"]) == repr(asdict(second.pairs[0])["layers"])


@pytest.mark.parametrize("first", [True, False])
def test_a_merge_is_of_the_true_weights(first: bool, pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = small_model(tmp_path / "other.safetensors")
    for base, name in zip(pair, ("quantised", "plain"), strict=True):
        models = (base, other) if first else (other, base)
        output = tmp_path / f"{name}-merged.safetensors"
        pm.merge(models, output, method="weighted-sum", weights=0.3, dtype="fp32")
    same_tensors(tmp_path / "quantised-merged.safetensors", tmp_path / "plain-merged.safetensors")
    kept = tmp_path / "kept.safetensors"
    pm.merge((pair[0], other), kept, method="weighted-sum", weights=0.3)
    assert not [key for key in load(kept).raw if key.endswith("weight_scale")]
