"""Every way of baking against NumPy float64, on diffusers folders, whose keys are the layers' own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from baking import (
    LARGEST_SHARE_OFF,
    Array,
    add,
    check_close,
    load,
    lora_file,
    para_file,
    plan_of,
    random_bases,
    random_factors,
    remove,
    rounded,
    shapes_of,
    span,
)

from paramerge.apply import kernel
from paramerge.apply.steps import Step
from paramerge.bake import stream, tasks
from paramerge.bake.bake import bake

Reference = Callable[[np.ndarray, str], np.ndarray]


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make most tensors exceed the buffers, as the largest of a full-size checkpoint do."""
    monkeypatch.setattr(tasks, "BUFFER_BYTES", 20_000)
    monkeypatch.setattr(stream, "BUFFER_BYTES", 20_000)
    monkeypatch.setattr(kernel, "_BLOCK_ELEMENTS", 3_000)


def check_folder(base: Path, output: Path, reference: Reference, changed: set[str]) -> None:
    """Compare each layer with the reference, every other tensor byte for byte."""
    off = elements = 0.0
    for component in ("unet", "text_encoder", "text_encoder_2"):
        if not (base / component).is_dir():
            continue
        before, after = load(base / component), load(output / component)
        assert list(before.tensors) == list(after.tensors)
        for key, found in after.tensors.items():
            layer = f"{component}.{key.removesuffix('.weight')}"
            if layer not in changed:
                assert after.raw[key] == before.raw[key], key
                continue
            expected = reference(before.tensors[key].astype(np.float64), layer)
            assert after.raw[key] != before.raw[key]
            off += check_close(found, expected, layer) * found.size
            elements += found.size
    assert elements
    assert off / elements < LARGEST_SHARE_OFF


def some_layers(base: Path, per_kind: int = 3) -> list[str]:
    """A few layers of every shape there is: linear, 1x1, 3x3, wide, tall, in every component."""
    by_shape: dict[tuple[object, ...], list[str]] = {}
    for layer, shape in shapes_of(base).items():
        by_shape.setdefault((layer.split(".")[0], shape), []).append(layer)
    return [layer for layers in by_shape.values() for layer in layers[:per_kind]]


def stored_factors(
    factors: Mapping[str, tuple[Array, Array]], dtype: str = "F16"
) -> dict[str, tuple[Array, Array]]:
    return {layer: (rounded(up, dtype), rounded(down, dtype)) for layer, (up, down) in factors.items()}


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_para_then_lora(models, tmp_path: Path, architecture: str, dtype: str) -> None:
    """The main job, in every dtype: the paper's equation 3, then a LoRA with alpha and scale."""
    base = models(architecture, layout="diffusers-folder", dtype=dtype)
    layers = some_layers(base)
    shapes = shapes_of(base)
    bases = random_bases(shapes, layers, 4)
    factors = stored_factors(random_factors(shapes, layers, 3))
    plan = plan_of(
        base,
        Step("para", para_file(tmp_path / "a.safetensors", bases, architecture)),
        Step(
            "lora",
            lora_file(tmp_path / "b.safetensors", factors, 2.0, two_encoders=architecture == "sdxl"),
            0.8,
        ),
    )
    bake(plan, tmp_path / "out")

    def reference(W: np.ndarray, layer: str) -> np.ndarray:
        return add(remove(W, rounded(bases[layer], "F16")), *factors[layer], 0.8 * 2.0 / 3)

    check_folder(base, tmp_path / "out", reference, set(layers))


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("out_dtype", ["keep", "fp32"])
def test_tensors_larger_than_the_buffers(models, tmp_path: Path, out_dtype: str) -> None:
    base = models("sd15", layout="diffusers-folder")
    layers = some_layers(base)
    shapes = shapes_of(base)
    bases = random_bases(shapes, layers, 4)
    factors = stored_factors(random_factors(shapes, layers, 3))
    para = para_file(tmp_path / "a.safetensors", bases)
    lora = lora_file(tmp_path / "b.safetensors", factors)
    plan = plan_of(base, Step("para", para, 0.5), Step("lora", lora), dtype=out_dtype)
    bake(plan, tmp_path / "out")

    def reference(W: np.ndarray, layer: str) -> np.ndarray:
        return add(remove(W, rounded(bases[layer], "F16"), 0.5), *factors[layer])

    if out_dtype == "keep":
        check_folder(base, tmp_path / "out", reference, set(layers))
        return
    before, after = load(base / "unet"), load(tmp_path / "out" / "unet")
    for key, found in after.tensors.items():
        assert found.dtype == np.float32
        W = before.tensors[key].astype(np.float64)
        layer = f"unet.{key.removesuffix('.weight')}"
        check_close(found, reference(W, layer) if layer in bases else W, layer)


def test_lora_before_para(models, tmp_path: Path) -> None:
    """The other order: the PaRa removes from the LoRA too (T6)."""
    base = models("sd15", layout="diffusers-folder")
    layers = some_layers(base)
    bases = random_bases(shapes_of(base), layers, 4)
    factors = stored_factors(random_factors(shapes_of(base), layers, 3))
    plan = plan_of(
        base,
        Step("lora", lora_file(tmp_path / "b.safetensors", factors), -1.5),
        Step("para", para_file(tmp_path / "a.safetensors", bases)),
    )
    bake(plan, tmp_path / "out")

    def reference(W: np.ndarray, layer: str) -> np.ndarray:
        return remove(add(W, *factors[layer], -1.5), rounded(bases[layer], "F16"))

    check_folder(base, tmp_path / "out", reference, set(layers))


@pytest.mark.parametrize("merge", ["joint", "sequential"])
def test_three_paras(models, tmp_path: Path, merge: str) -> None:
    """Overlapping spans (a shared direction in every pair), merged both ways."""
    base = models("sd15", layout="diffusers-folder")
    layers = some_layers(base)
    one, two, three = (random_bases(shapes_of(base), layers, 3, seed=i) for i in range(3))
    for layer in layers:
        two[layer][:, 0] = one[layer][:, 1]
        three[layer][:, 2] = two[layer][:, 1]
    everything = [one, two, three]
    files = [para_file(tmp_path / f"{i}.safetensors", b, dtype="F32") for i, b in enumerate(everything)]
    bake(plan_of(base, *(Step("para", file) for file in files), merge=merge), tmp_path / "out")

    def reference(W: np.ndarray, layer: str) -> np.ndarray:
        stored = [rounded(b[layer], "F32") for b in everything]
        if merge == "joint":
            return remove(W, np.hstack([span(B) for B in stored]))
        for B in stored:
            W = remove(W, B)
        return W

    check_folder(base, tmp_path / "out", reference, set(layers))


def test_joint_merge_of_different_strengths(models, tmp_path: Path) -> None:
    """A direction goes with the strongest adapter that has it: ``s1 P1 + s2 (P12 - P1)`` for s1 > s2."""
    base = models("sd15", layout="diffusers-folder")
    layers = some_layers(base, 1)
    one, two = (random_bases(shapes_of(base), layers, 3, seed=i) for i in range(2))
    for layer in layers:
        two[layer][:, 0] = one[layer][:, 1]
    a = para_file(tmp_path / "a.safetensors", one, dtype="F32")
    b = para_file(tmp_path / "b.safetensors", two, dtype="F32")
    outputs = []
    for steps in ([Step("para", a, 0.5), Step("para", b, 0.9)], [Step("para", b, 0.9), Step("para", a, 0.5)]):
        output = tmp_path / f"out{len(outputs)}"
        bake(plan_of(base, *steps), output)
        outputs.append(output)

    def reference(W: np.ndarray, layer: str) -> np.ndarray:
        weak, strong = rounded(one[layer], "F32"), rounded(two[layer], "F32")
        removed_by_strong = W - remove(W, strong)
        removed_by_both = W - remove(W, np.hstack([span(weak), span(strong)]))
        return W - 0.9 * removed_by_strong - 0.5 * (removed_by_both - removed_by_strong)

    for output in outputs:
        check_folder(base, output, reference, set(layers))


@pytest.mark.parametrize("count", [1, 2])
def test_rank_boundary_keeps_the_directions_of_most_energy(models, tmp_path: Path, count: int) -> None:
    """``floor(gamma * min(d, k))`` directions go: those that carry most of the weight (T11, T12)."""
    base = models("sd15", layout="diffusers-folder")
    layers = some_layers(base)
    shapes = shapes_of(base)
    gamma = 0.1
    everything = [random_bases(shapes, layers, 6, seed=i) for i in range(count)]
    files = [para_file(tmp_path / f"{i}.safetensors", b, dtype="F32") for i, b in enumerate(everything)]
    plan = plan_of(base, *(Step("para", file) for file in files), gamma=gamma)
    report = bake(plan, tmp_path / "out")

    def limit(layer: str) -> int:
        rows, *rest = shapes[layer]
        return min(count * min(6, rows), int(gamma * min(rows, int(np.prod(rest))) + 1e-9))

    def reference(W: np.ndarray, layer: str) -> np.ndarray:
        P = span(np.hstack([span(rounded(b[layer], "F32")) for b in everything]))
        flat = W.reshape(W.shape[0], -1)
        U = np.linalg.svd(P @ (P.T @ flat), full_matrices=False)[0][:, : limit(layer)]
        return (flat - U @ (U.T @ flat)).reshape(W.shape)

    alone = {layer for layer in layers if limit(layer) == 0}
    assert alone  # the output convolution has four rows
    assert {str(name) for name in plan.left_alone} == alone
    assert {layer.name: layer.removed for layer in report.layers} == {
        layer: limit(layer) for layer in layers if layer not in alone
    }
    check_folder(base, tmp_path / "out", reference, set(layers) - alone)


def test_dependent_and_zero_columns_of_a_raw_basis_count_once(models, tmp_path: Path) -> None:
    """Only the span counts: rounding noise of dependent columns must not delete directions (T4, T7, T13)."""
    base = models("sd15", layout="diffusers-folder")
    layers = some_layers(base, 1)
    rng = np.random.default_rng(5)
    clean = random_bases(shapes_of(base), layers, 2)
    clean = {layer: rounded(B, "F16") for layer, B in clean.items()}
    messy = {layer: np.hstack([B, B[:, :1] * 0.25, B[:, 1:] * -2]) for layer, B in clean.items()}
    messy = {layer: B[:, rng.permutation(4)] for layer, B in messy.items()}
    report = bake(plan_of(base, Step("para", para_file(tmp_path / "a.safetensors", messy))), tmp_path / "out")
    assert {layer.removed for layer in report.layers} == {2}
    check_folder(base, tmp_path / "out", lambda W, layer: remove(W, clean[layer]), set(layers))


def test_removed_directions_are_gone_up_to_rounding(models, tmp_path: Path) -> None:
    """T14: in 16 bits a baked weight has full rank again; ``||Q^T W||`` tells, against the rounding bound."""
    base = models("sd15", layout="diffusers-folder")
    layers = some_layers(base)
    bases = random_bases(shapes_of(base), layers, 4)
    bake(plan_of(base, Step("para", para_file(tmp_path / "a.safetensors", bases))), tmp_path / "out")
    for component in ("unet", "text_encoder"):
        for key, W in load(tmp_path / "out" / component).tensors.items():
            layer = f"{component}.{key.removesuffix('.weight')}"
            if layer in bases:
                flat = W.astype(np.float64).reshape(W.shape[0], -1)
                left = np.linalg.norm(span(rounded(bases[layer], "F16")).T @ flat)
                # each element is off by at most half a unit in the last place, 2^-11 of it
                assert left <= 2.0**-11 * np.linalg.norm(flat) + 2.0**-25 * np.sqrt(flat.size)
