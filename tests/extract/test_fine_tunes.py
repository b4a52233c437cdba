"""What people extract from: true fine-tunes, of other dtypes than their bases, or of other inputs."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from baking import DTYPES, Array, load, plan_of
from blueprints import sd15
from random_checkpoint import write_random_checkpoint

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.extract.extract import ExtractionReport, extract
from paramerge.extract.families import ExtractOptions
from paramerge.extract.rounding import only_rounded
from paramerge.files.dtypes import FLOATS
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter

LAYER = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """A base in full precision, with values between those of every shorter dtype."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_random_checkpoint(sd15(16, vocabulary=64), path, seed=1, dtype="F32")
    rng = np.random.default_rng(0)
    return {
        key: (value * (1 + rng.uniform(0, 2**-9, value.shape))).astype(np.float32)
        if value.dtype.kind == "f"
        else value
        for key, value in load(path).tensors.items()
        if not key.startswith("first_stage_model.")
    }


def stored_as(tensors: dict[str, Array], dtype: str) -> dict[str, Array]:
    return {
        key: value.astype(DTYPES[dtype]) if value.dtype == np.float32 else value
        for key, value in tensors.items()
    }


def extracted(
    folder: Path, base: dict[str, Array], tuned: dict[str, Array], family: str = "lora", **options: object
) -> ExtractionReport:
    write_safetensors(folder / "base.safetensors", base, {})
    write_safetensors(folder / "tuned.safetensors", tuned, {})
    return extract(
        open_base(folder / "tuned.safetensors"),
        open_base(folder / "base.safetensors"),
        folder / "out.safetensors",
        ExtractOptions(family, **options),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("one", "other"), list(permutations(FLOATS, 2)))
def test_one_number_in_two_dtypes_is_the_same(one: str, other: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(20_000) * 2.0 ** rng.integers(-24, 6, 20_000)
    a, b = (x.astype(DTYPES[dtype]).astype(np.float64) for dtype in (one, other))
    assert only_rounded(a, b, one, other)
    # a step of both is more than rounding, wherever the value lies
    step = sum(np.abs(_next(x, dtype) - x.astype(DTYPES[dtype]).astype(np.float64)) for dtype in (one, other))
    for index in (0, 77, 19_999):
        changed = b.copy()
        changed[index] = a[index] + 1.01 * step[index]
        assert not only_rounded(a, changed, one, other)


def _next(values: np.ndarray, dtype: str) -> np.ndarray:
    return np.nextafter(values.astype(DTYPES[dtype]), DTYPES[dtype].type(400)).astype(np.float64)


@pytest.mark.parametrize("family", ["lora", "lokr"])
@pytest.mark.parametrize(
    ("base", "tuned"), [("F32", "F16"), ("F16", "F32"), ("F32", "BF16"), ("BF16", "F16"), ("F32", "F8_E4M3")]
)
def test_rounding_is_no_change(
    original: dict[str, Array], tmp_path: Path, base: str, tuned: str, family: str
) -> None:
    changed = {**original, LAYER: original[LAYER] + np.float32(0.5)}
    options = {"rank": 1} if family == "lora" else {}
    report = extracted(tmp_path, stored_as(original, base), stored_as(changed, tuned), family, **options)
    assert [str(layer.name) for layer in report.layers] == [
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ]
    assert not report.left_out and not report.whole


@pytest.mark.parametrize("part", ["everything", "biases", "norm weights"])
def test_a_fine_tune_comes_back(original: dict[str, Array], tmp_path: Path, part: str) -> None:
    """Layers, norms, biases and embeddings: what is extracted bakes to the tuned checkpoint, to rounding."""
    rng = np.random.default_rng(2)
    chosen = {
        "everything": lambda key, value: value.ndim < 2 or "embedding" in key or key == LAYER,
        "biases": lambda key, value: key.endswith(".bias"),
        "norm weights": lambda key, value: value.ndim == 1 and key.endswith(".weight"),
    }[part]
    base = stored_as(original, "F16")
    tuned = {
        key: (value + rng.normal(0, 0.02, value.shape)).astype(np.float16)
        if value.dtype == np.float16 and chosen(key, value) and key.endswith((".weight", ".bias"))
        else value
        for key, value in base.items()
    }
    report = extracted(tmp_path, base, tuned, rank=10_000, dtype="F32")
    assert not report.left_out and report.whole > 100
    adapter = open_adapter(tmp_path / "out.safetensors")
    assert not adapter.leftovers
    bake(
        plan_of(tmp_path / "base.safetensors", Step("adapter", adapter.path)), tmp_path / "again.safetensors"
    )
    again = load(tmp_path / "again.safetensors").tensors
    for key, value in tuned.items():
        if value.dtype != np.float16:
            continue
        one, other = again[key].astype(np.float64), value.astype(np.float64)
        # factors in F32 miss 2^-24 of the difference: at most one value in many lies on the edge
        assert np.all(np.abs(one - other) <= np.spacing(np.abs(value)).astype(np.float64)), key
        assert np.mean(one != other) < 0.01, key


def test_norms_keep_both_halves(original: dict[str, Array], tmp_path: Path) -> None:
    """A1111 reads ``w_norm`` and ``b_norm`` together alone: the one that did not change is zeros."""
    key = "model.diffusion_model.out.0.bias"
    report = extracted(tmp_path, original, {**original, key: original[key] + np.float32(1)}, rank=1)
    stored = load(tmp_path / "out.safetensors").tensors
    assert report.whole == 1
    assert sorted(stored) == ["lora_unet_conv_norm_out.b_norm", "lora_unet_conv_norm_out.w_norm"]
    assert not stored["lora_unet_conv_norm_out.w_norm"].any()


@pytest.mark.parametrize("family", ["lora", "para"])
@pytest.mark.parametrize("tuned_is", ["inpainting", "plain"])
def test_between_inpainting_and_plain(
    original: dict[str, Array], tmp_path: Path, tuned_is: str, family: str
) -> None:
    first = "model.diffusion_model.input_blocks.0.0.weight"
    W = original[first]
    inpainting = {**original, first: np.concatenate([W, np.zeros_like(W[:, :1]).repeat(5, 1)], axis=1)}
    U = np.linalg.qr(np.random.default_rng(3).standard_normal((len(original[LAYER]), 2)))[0]
    removed = (original[LAYER] - U @ (U.T @ original[LAYER])).astype(np.float32)
    sides = (original, inpainting) if tuned_is == "inpainting" else (inpainting, original)
    options = {"rank": 2} if family == "lora" else {}
    report = extracted(tmp_path, sides[0], {**sides[1], LAYER: removed}, family, **options)
    assert len(report.layers) == 1 and list(report.unlike) == ["unet.conv_in"]
    assert "9" in report.unlike["unet.conv_in"] and not report.left_out
    assert open_adapter(tmp_path / "out.safetensors").architecture in (None, "sd15")
