"""Every family and form baked, in every dtype and layout, against float64 formulas."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from baking import (
    DTYPES,
    LARGEST_SHARE_OFF,
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
)
from family_cases import CASES, Case
from numpy.typing import NDArray

from paramerge.apply.steps import Step
from paramerge.bake import stream, tasks
from paramerge.bake.bake import bake
from paramerge.bake.summary import summarise
from paramerge.checkpoints.layout import open_base
from paramerge.checkpoints.targets import Target
from paramerge.files.writer import write_safetensors
from paramerge.models.names import ModuleName
from paramerge.resolve.weights import BaseWeights

Array = NDArray[np.generic]

TO_V = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
CONV = "unet.down_blocks.1.resnets.0.conv1"
LAYERS = (
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    TO_V,
    "unet.down_blocks.0.attentions.1.proj_in",
    CONV,
)


def named(*names: str) -> list[Case]:
    return [case for case in CASES if case.name in names]


def matrices(base: Path, layers: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
    weights = BaseWeights(open_base(base))
    return {layer: weights.matrix(ModuleName.parse(layer)) for layer in layers}


def suiting(case: Case, base: Path, layers: tuple[str, ...] = LAYERS) -> dict[str, tuple[int, ...]]:
    shapes = shapes_of(base)
    return {layer: shapes[layer] for layer in layers if case.suits(shapes[layer])}


def dealt(base: Path) -> list[tuple[Case, dict[str, tuple[int, ...]]]]:
    """Every case with a linear layer, a 1x1 and a 3x3 convolution of its own, as far as they suit it."""
    shapes = shapes_of(base)
    unet = {layer: shape for layer, shape in shapes.items() if layer.startswith("unet.")}
    linear = [layer for layer in unet if layer.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))]
    pointwise = [layer for layer in unet if layer.endswith(("proj_in", "proj_out", "conv_shortcut"))]
    spatial = [layer for layer in unet if layer.endswith((".conv1", ".conv2"))]
    hands = []
    for place, case in enumerate(CASES):
        layers = [kind[place] for kind in (linear, pointwise, spatial) if place < len(kind)]
        hands.append((case, {layer: shapes[layer] for layer in layers if case.suits(shapes[layer])}))
    return hands


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("diffusers-folder", "F16"),
        ("single-file", "F16"),
        ("diffusers-folder", "BF16"),
        ("single-file", "F32"),
    ],
)
def test_every_form_in_every_dtype_and_layout(models, tmp_path: Path, layout: str, dtype: str) -> None:
    """All forms of all families in one bake, each on layers of its own."""
    base = models("sd15", layout=layout, dtype=dtype)
    hands = dealt(base)
    steps, wanted = [], {}
    for place, (case, shapes) in enumerate(hands):
        # F16 files with F16 weights, else F32 files: the formula sees what was stored
        path, stored = case.write(
            tmp_path / str(place), shapes, "F16" if dtype == "F16" else "F32", seed=place
        )
        strength = 0.7 if case.linear_strength else 1.0
        steps.append(Step("adapter", path, strength))
        wanted |= {layer: (case, stored[layer], shape, strength) for layer, shape in shapes.items()}
    output = tmp_path / ("out" if layout == "diffusers-folder" else "out.safetensors")
    report = bake(plan_of(base, *steps), output)
    assert {layer.name for layer in report.layers if not layer.name.endswith(".bias")} == wanted.keys()
    before, after = matrices(base, tuple(wanted)), matrices(output, tuple(wanted))
    off: dict[str, float] = {}
    elements = 0
    for layer, (case, stored_layer, shape, strength) in wanted.items():
        expected = case.expected(stored_layer, before[layer], shape, strength)
        share = check_close(after[layer].astype(DTYPES[dtype]), expected, f"{case}, {layer}")
        off[case.name] = off.get(case.name, 0.0) + share * expected.size
        elements += expected.size
    assert off.keys() == {case.name for case in CASES}
    assert sum(off.values()) < LARGEST_SHARE_OFF * elements, off


@pytest.mark.parametrize("case", named("lokr-whole", "oft", "dora-in"), ids=str)
def test_between_a_lora_and_a_para(models, tmp_path: Path, case: Case) -> None:
    """Each step acts on what the step before it left: LoRA, the family, PaRa, and the family once more."""
    base = models("sd15", layout="diffusers-folder", dtype="F32")
    shapes = suiting(case, base)
    factors = random_factors(shapes, list(shapes), 2)
    bases = random_bases(shapes, list(shapes), 3)
    path, stored = case.write(tmp_path / "adapter", shapes)
    plan = plan_of(
        base,
        Step("lora", lora_file(tmp_path / "l.safetensors", factors, dtype="F32"), 0.5),
        Step("adapter", path, 0.7),
        Step("para", para_file(tmp_path / "p.safetensors", bases, dtype="F32")),
        Step("adapter", path),
    )
    bake(plan, tmp_path / "out")
    before, after = matrices(base, tuple(shapes)), matrices(tmp_path / "out", tuple(shapes))
    for layer, shape in shapes.items():
        up, down = (f.astype(np.float64).reshape(len(f), -1) for f in factors[layer])
        W = before[layer] + 0.5 * up @ down
        W = case.expected(stored[layer], W, shape, 0.7)
        W = case.expected(stored[layer], remove(W, rounded(bases[layer], "F32")), shape)
        check_close(after[layer].astype(np.float32), W, layer)
    summary = summarise(plan)
    assert [step.depends_on_weight for step in summary.steps] == [
        0,
        4 * case.dependent,
        0,
        4 * case.dependent,
    ]
    assert summary.layers_held_whole == (len(shapes) if case.dependent else 0)
    assert [step.kind for step in summary.steps] == ["lora", "adapter", "para", "adapter"]


@pytest.mark.parametrize("case", named("lokr-large-first", "loha", "boft"), ids=str)
def test_tensors_larger_than_the_buffers(
    models, tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BUFFER_BYTES", 20_000)
    monkeypatch.setattr(stream, "BUFFER_BYTES", 20_000)
    base = models("sd15", layout="diffusers-folder")
    shapes = suiting(case, base)
    path, stored = case.write(tmp_path / "adapter", shapes)
    bake(plan_of(base, Step("adapter", path), dtype="fp32"), tmp_path / "out")
    before, after = matrices(base, tuple(shapes)), matrices(tmp_path / "out", tuple(shapes))
    for layer, shape in shapes.items():
        check_close(
            after[layer].astype(np.float32), case.expected(stored[layer], before[layer], shape), layer
        )


@pytest.mark.parametrize("case", named("lokr-w1-whole", "loha", "glora", "svdiff"), ids=str)
def test_stacked_and_transposed_layers(models, tmp_path: Path, case: Case) -> None:
    """SDXL's second encoder in a file: q, k and v are rows of one tensor, text_projection is turned."""
    base = models("sdxl", dtype="F32")
    layer = "text_encoder_2.text_model.encoder.layers.3.self_attn"
    layers = (f"{layer}.q_proj", f"{layer}.v_proj", "text_encoder_2.text_projection")
    shapes = suiting(case, base, layers)
    path, stored = case.write(tmp_path / "adapter", shapes)
    bake(plan_of(base, Step("adapter", path)), tmp_path / "out.safetensors")
    everything = (*layers, f"{layer}.k_proj")
    before, after = matrices(base, everything), matrices(tmp_path / "out.safetensors", everything)
    for name, shape in shapes.items():
        check_close(after[name].astype(np.float32), case.expected(stored[name], before[name], shape), name)
    assert np.array_equal(before[f"{layer}.k_proj"], after[f"{layer}.k_proj"])


def parameter(base: Path, name: str) -> Array:
    """A norm's weight, a bias or an embedding, by the layout's own place for it."""
    module = ModuleName.parse(name)
    places: list[tuple[Path, Target]] = [
        (file.header.path, file.parameters[module])
        for file in open_base(base).files
        if module in file.parameters
    ]
    ((path, target),) = places
    tensor = load(path).tensors[target.key]
    return tensor if target.rows is None else tensor[slice(*target.rows)]


@pytest.mark.parametrize(("architecture", "layout"), [("sd15", "diffusers-folder"), ("sdxl", "single-file")])
def test_norms_and_biases(models, tmp_path: Path, architecture: str, layout: str) -> None:
    """LyCORIS's norms, and bias differences beside a LoRA, of the UNet and of (stacked) text encoders."""
    base = models(architecture, layout=layout)
    encoder, prefix = (
        ("text_encoder_2", "lora_te2") if architecture == "sdxl" else ("text_encoder", "lora_te")
    )
    stem = f"{encoder}.text_model.encoder.layers.1"
    block = "down_blocks.1.attentions.0"
    names = {
        "unet.down_blocks.1.resnets.1.norm2.weight": "lora_unet_down_blocks_1_resnets_1_norm2.w_norm",
        "unet.down_blocks.1.resnets.1.norm2.bias": "lora_unet_down_blocks_1_resnets_1_norm2.b_norm",
        f"unet.{block}.norm.weight": "lora_unet_down_blocks_1_attentions_0_norm.w_norm",
        f"unet.{block}.transformer_blocks.0.norm3.weight": (
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_norm3.diff"
        ),
        "unet.conv_norm_out.weight": "lora_unet_conv_norm_out.w_norm",
        "unet.conv_in.bias": "lora_unet_conv_in.diff_b",
        f"{stem}.layer_norm2.weight": f"{prefix}_text_model_encoder_layers_1_layer_norm2.w_norm",
        f"{stem}.self_attn.k_proj.bias": f"{prefix}_text_model_encoder_layers_1_self_attn_k_proj.diff_b",
        f"{encoder}.text_model.final_layer_norm.weight": f"{prefix}_text_model_final_layer_norm.w_norm",
    }
    rng = np.random.default_rng(0)
    tensors = {
        key: rng.normal(0, 0.1, parameter(base, name).shape).astype(np.float32) for name, key in names.items()
    }
    shapes = shapes_of(base)
    layer = f"{stem}.self_attn.k_proj"
    factors = random_factors(shapes, [layer], 2)[layer]
    key = names[f"{layer}.bias"].removesuffix(".diff_b")
    tensors |= {f"{key}.lora_up.weight": factors[0], f"{key}.lora_down.weight": factors[1]}
    write_safetensors(tmp_path / "a.safetensors", tensors, {})
    output = tmp_path / ("out" if layout == "diffusers-folder" else "out.safetensors")
    plan = plan_of(base, Step("adapter", tmp_path / "a.safetensors", 0.5))
    report = bake(plan, output)
    assert {layer.name for layer in report.layers} == {*names, layer}
    for name, key in names.items():
        before, after = parameter(base, name), parameter(output, name)
        check_close(after, before.astype(np.float64) + 0.5 * tensors[key].astype(np.float64), name)
        assert not np.array_equal(before, after)
    untouched = f"{stem}.self_attn.q_proj.bias"
    assert np.array_equal(parameter(base, untouched), parameter(output, untouched))


def test_a_norm_that_the_base_lacks_is_an_error(models, tmp_path: Path) -> None:
    from paramerge.errors import ShapeError, UnmatchedError

    base = models("sd15", layout="diffusers-folder")
    key = "lora_unet_down_blocks_3_attentions_0_norm.w_norm"
    write_safetensors(tmp_path / "a.safetensors", {key: np.ones(8, np.float32)}, {})
    with pytest.raises(UnmatchedError, match="nothing of this adapter lands"):
        plan_of(base, Step("adapter", tmp_path / "a.safetensors"))
    write_safetensors(
        tmp_path / "b.safetensors", {"lora_unet_conv_norm_out.w_norm": np.ones(7, np.float32)}, {}
    )
    with pytest.raises(ShapeError, match="does not fit the base's weight"):
        plan_of(base, Step("adapter", tmp_path / "b.safetensors"))


def test_svdiff_reaches_norms_and_embeddings(models, tmp_path: Path) -> None:
    """In svdiff-pytorch's own names; a norm's one singular value is its length."""
    base = models("sd15", layout="diffusers-folder", dtype="F32")
    rng = np.random.default_rng(0)
    unet = {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.delta": rng.normal(0, 0.1, 40),
        "down_blocks.0.attentions.0.norm.delta": np.array([0.25]),
    }
    text = {
        "text_model.embeddings.position_embedding.delta": rng.normal(0, 0.1, 77),
        "text_model.encoder.layers.0.layer_norm1.delta": np.array([-0.5]),
    }
    for name, tensors in (("spectral_shifts", unet), ("spectral_shifts_te", text)):
        arrays = {key: value.astype(np.float32) for key, value in tensors.items()}
        write_safetensors(tmp_path / f"{name}.safetensors", arrays, {})
    steps = [
        Step("adapter", tmp_path / f"{name}.safetensors")
        for name in ("spectral_shifts", "spectral_shifts_te")
    ]
    plan = plan_of(base, *steps)
    assert [step.adapter.dialect for step in plan.steps] == ["svdiff", "svdiff"]
    bake(plan, tmp_path / "out")
    for name, shift in (
        ("unet.down_blocks.0.attentions.0.norm.weight", 0.25),
        ("text_encoder.text_model.encoder.layers.0.layer_norm1.weight", -0.5),
    ):
        w = parameter(base, name).astype(np.float64)
        length = math.sqrt(float(np.sum(w**2)))
        check_close(parameter(tmp_path / "out", name), w * (length + shift) / length, name)
    name = "text_encoder.text_model.embeddings.position_embedding.weight"
    W = parameter(base, name).astype(np.float64)
    U, S, Vt = np.linalg.svd(W.T, full_matrices=False)
    wanted = np.float32(text["text_model.embeddings.position_embedding.delta"]).astype(np.float64)
    check_close(parameter(tmp_path / "out", name), ((U * np.maximum(S + wanted, 0)) @ Vt).T, name)
