"""Steps on weights in memory: those that a bake writes, planned on a base of names and shapes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from baking import load, lora_file, para_file, random_bases, random_factors, shapes_of, small_model
from family_cases import CASES, Case

import paramerge as pm
from paramerge.apply.loaded import LoadedEdits
from paramerge.checkpoints.layout import open_base
from paramerge.checkpoints.loaded import base_of_tensors
from paramerge.errors import ArchitectureError, UnmatchedError

LAYERS = (
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj",
)
EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-52}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "base.safetensors", "sdxl", dtype="F32")


@pytest.fixture(scope="module")
def adapters(base: Path) -> tuple[pm.Adapter, ...]:
    shapes = shapes_of(base)
    para_file(base.parent / "para.safetensors", random_bases(shapes, list(LAYERS), 4, 1), "sdxl")
    lora_file(base.parent / "lora.safetensors", random_factors(shapes, list(LAYERS), 3, 2))
    return (pm.Para(base.parent / "para.safetensors"), pm.Lora(base.parent / "lora.safetensors", 0.7))


def in_memory(base: Path) -> pm.Base:
    """The base by its names and shapes, as a program that has loaded it knows it."""
    return base_of_tensors(
        "the loaded model", {key: value.shape for key, value in load(base).tensors.items()}
    )


def changed(
    plan: pm.Plan, before: dict[str, np.ndarray], dtype: torch.dtype, factor: float = 1.0
) -> dict[str, torch.Tensor]:
    tensors = {
        tensor.info.key: tensor.edits for file in plan.files for tensor in file.tensors if tensor.edits
    }
    assert tensors
    return {
        key: LoadedEdits(edits).change(torch.from_numpy(np.array(before[key])).to(dtype), factor)
        for key, edits in tensors.items()
    }


def test_the_plan_is_the_files(base: Path) -> None:
    """OpenCLIP's stacked and transposed tensors among them."""
    found, expected = in_memory(base), open_base(base)
    assert found.architecture == expected.architecture == "sdxl"
    assert dict(found.files[0].reachable) == dict(expected.files[0].reachable)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("reverse", [False, True])
def test_weights_are_the_baked_ones(
    base: Path, adapters: tuple[pm.Adapter, ...], tmp_path: Path, dtype: torch.dtype, reverse: bool
) -> None:
    steps = adapters[::-1] if reverse else adapters
    pm.bake(base, steps, tmp_path / "out.safetensors")
    expected = load(tmp_path / "out.safetensors").tensors
    for key, weight in changed(pm.plan_bake(in_memory(base), steps), load(base).tensors, dtype).items():
        assert weight.dtype == dtype
        wanted = torch.from_numpy(np.array(expected[key])).double()
        error = torch.linalg.vector_norm(weight.double() - wanted) / torch.linalg.vector_norm(wanted)
        # the bake rounds to float32; so do the products here, and the weight was rounded to its dtype before
        assert error <= 2 * EPS[dtype] + 16 * EPS[torch.float32]


@pytest.mark.parametrize("case", [case for case in CASES if case.dependent and case.linear_strength], ids=str)
def test_factors_scale_strengths(base: Path, tmp_path: Path, case: Case) -> None:
    shapes = {LAYERS[0]: shapes_of(base)[LAYERS[0]]}
    if not case.suits(shapes[LAYERS[0]]):
        pytest.skip("this layer does not suit the case")
    path, _ = case.write(tmp_path / "adapter", shapes, "F32")
    before = load(base).tensors
    model = in_memory(base)
    (half,) = changed(pm.plan_bake(model, [pm.Adapter(path)]), before, torch.float64, 0.5).values()
    (same,) = changed(pm.plan_bake(model, [pm.Adapter(path, 0.5)]), before, torch.float64).values()
    assert torch.equal(half, same)


def test_a_weight_is_left_as_it_was(base: Path, adapters: tuple[pm.Adapter, ...]) -> None:
    plan = pm.plan_bake(in_memory(base), adapters)
    (tensor, *_) = (tensor for file in plan.files for tensor in file.tensors if tensor.edits)
    weight = torch.randn(tensor.info.shape)
    copy = weight.clone()
    edits = LoadedEdits(tensor.edits)
    first = edits.change(weight)
    assert torch.equal(weight, copy) and not torch.equal(first, weight)
    assert torch.equal(edits.change(weight), first)  # with the kept chain


def test_another_model_is_refused_by_the_name_given(base: Path, tmp_path: Path) -> None:
    para_file(tmp_path / "para.safetensors", random_bases({LAYERS[0]: (7, 7)}, [LAYERS[0]], 2, 0), "sd15")
    with pytest.raises((ArchitectureError, UnmatchedError), match="sd15"):
        pm.plan_bake(in_memory(base), [pm.Para(tmp_path / "para.safetensors")])
