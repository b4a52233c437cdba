"""Adapters on loaded modules equal adapters baked into the file, for SDXL's second text encoder too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from baking import lora_file, para_file, plan_of, random_bases, random_factors, shapes_of
from family_cases import CASES
from tiny_pipelines import sd_pipeline, sdxl_pipeline

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError, NonFiniteError
from paramerge.files.writer import write_safetensors
from paramerge.generation.adapting import apply_plan
from paramerge.generation.loading import load_pipeline

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module", params=[sd_pipeline, sdxl_pipeline], ids=["sd15", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    make: Callable[[Path], tuple[Path, Path]] = request.param
    return make(tmp_path_factory.mktemp("model"))


def steps_for(base: Path, folder: Path) -> list[Step]:
    """Two PaRas and a LoRA on layers of every kind, convolutions and text encoders included."""
    shapes, architecture = shapes_of(base), open_base(base).architecture
    everything = list(shapes)
    some = everything[:: max(1, len(everything) // 40)]
    a = para_file(folder / "a.safetensors", random_bases(shapes, some, 3, 1), architecture)
    b = para_file(folder / "b.safetensors", random_bases(shapes, some, 2, 2), architecture)
    two = architecture == "sdxl"
    c = lora_file(folder / "c.safetensors", random_factors(shapes, some, 2), two_encoders=two)
    return [Step("para", a, 0.7), Step("para", b), Step("lora", c, 0.5)]


@pytest.mark.parametrize("place", [0, 1], ids=["folder", "single-file"])
def test_loaded_and_changed_equals_baked_and_loaded(
    model: tuple[Path, Path], place: int, tmp_path: Path
) -> None:
    base, config = model[place], model[0]
    plan = plan_of(base, *steps_for(base, tmp_path))
    pipeline = load_pipeline(open_base(base), torch.float32, config)
    before = states(pipeline)
    results = apply_plan(plan, pipeline)
    report = bake(plan_of(base, *plan_steps(plan), dtype="fp32"), tmp_path / base.name)
    baked = states(load_pipeline(open_base(report.output), torch.float32, config))
    after = states(pipeline)
    assert {(r.name, r.removed, r.rank) for r in results} == {
        (r.name, r.removed, r.rank) for r in report.layers
    }
    assert sum(not torch.equal(before[key], after[key]) for key in after) == len(results) > 10
    for key, found in after.items():
        # the same float64 arithmetic in another order, rounded once: at most one unit in the last place
        torch.testing.assert_close(found, baked[key], rtol=2 * torch.finfo(torch.float32).eps, atol=1e-12)


@pytest.mark.parametrize("name", ["lokr-w1-whole", "dora-in", "svdiff"])
def test_other_families_are_applied_as_they_are_baked(
    model: tuple[Path, Path], name: str, tmp_path: Path
) -> None:
    """With a norm and a bias, between a LoRA and a PaRa."""
    (case,) = (case for case in CASES if case.name == name)
    base, config = model
    shapes = shapes_of(config)
    layers = [layer for layer in shapes if ".attn1.to_q" in layer or ".conv1" in layer]
    adapter, _ = case.write(tmp_path / "adapter", {layer: shapes[layer] for layer in layers})
    bases = random_bases(shapes, layers, 2)
    vectors = {
        "lora_unet_conv_norm_out.w_norm": np.full(shapes["unet.conv_out"][1], 0.1, np.float32),
        "lora_unet_conv_in.diff_b": np.full(shapes["unet.conv_in"][0], 0.2, np.float32),
    }
    write_safetensors(tmp_path / "v.safetensors", vectors, {})
    steps = [
        Step("lora", lora_file(tmp_path / "l.safetensors", random_factors(shapes, layers, 2)), 0.5),
        Step("adapter", adapter, 0.7),
        Step("adapter", tmp_path / "v.safetensors"),
        Step("para", para_file(tmp_path / "p.safetensors", bases, open_base(config).architecture)),
    ]
    plan = plan_of(base, *steps)
    pipeline = load_pipeline(open_base(base), torch.float32, config)
    before = states(pipeline)
    results = apply_plan(plan, pipeline)
    report = bake(plan_of(base, *steps, dtype="fp32"), tmp_path / base.name)
    after = states(pipeline)
    baked = states(load_pipeline(open_base(report.output), torch.float32, config))
    assert sum(not torch.equal(before[key], after[key]) for key in after) == len(results) == len(layers) + 2
    assert {(r.name, r.removed, r.rank) for r in results} == {
        (r.name, r.removed, r.rank) for r in report.layers
    }
    for key, found in after.items():
        torch.testing.assert_close(found, baked[key], rtol=2 * torch.finfo(torch.float32).eps, atol=1e-9)


def plan_steps(plan: object) -> list[Step]:
    return [planned.step for planned in plan.steps]  # type: ignore[attr-defined]


def states(pipeline: object) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name in COMPONENTS
        if getattr(pipeline, name, None) is not None
        for key, value in getattr(pipeline, name).state_dict().items()
    }


def test_a_layer_loaded_in_another_shape_is_refused(model: tuple[Path, Path], tmp_path: Path) -> None:
    plan = plan_of(model[0], *steps_for(model[0], tmp_path))
    pipeline = load_pipeline(open_base(model[0]), torch.float32)
    edit = next(edit for edit in plan.edits if edit.target.module.component == "unet")
    layer = pipeline.unet.get_submodule(edit.target.module.path)
    layer.weight = torch.nn.Parameter(layer.weight[:1])
    with pytest.raises(CheckpointError, match="another shape") as caught:
        apply_plan(plan, pipeline)
    assert str(edit.target.module) in str(caught.value)


def test_a_pipeline_without_the_layer_is_refused(model: tuple[Path, Path], tmp_path: Path) -> None:
    plan = plan_of(model[0], *steps_for(model[0], tmp_path))
    pipeline = load_pipeline(open_base(model[0]), torch.float32)
    pipeline.unet = None
    with pytest.raises(CheckpointError, match="no such layer"):
        apply_plan(plan, pipeline)


def test_results_beyond_the_dtype_are_refused(model: tuple[Path, Path], tmp_path: Path) -> None:
    shapes = shapes_of(model[0])
    layer = next(name for name in shapes if name.endswith("attn1.to_q"))
    factors = {layer: (np.full((shapes[layer][0], 1), 6e4), np.full((1, shapes[layer][1]), 6e4))}
    plan = plan_of(model[0], Step("lora", lora_file(tmp_path / "x.safetensors", factors), 4))
    with pytest.raises(NonFiniteError, match="not finite") as caught:
        apply_plan(plan, load_pipeline(open_base(model[0]), torch.float16))
    assert caught.value.where == layer
