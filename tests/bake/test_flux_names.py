"""FLUX's two namings meet: adapters in either, bakes into either, against diffusers' converters and PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_zoo as zoo
import numpy as np
import pytest
import torch
from baking import para_file, plan_of, random_bases, remove, shapes_of
from checkpoint_files import write_holes
from flux_models import WIDTH, as_single_file, flux_model, read
from flux_shapes import single_file_shapes
from safetensors.torch import save_file

from paramerge.adapters import LoraModule
from paramerge.apply.steps import Step
from paramerge.bake import stream, tasks
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.compare.compare import compare
from paramerge.errors import AdapterError, ShapeError, UnmatchedError, UsageError
from paramerge.formats import open_adapter
from paramerge.models.names import ModuleName

ROUNDED = 4 * 2.0**-24
Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Tensors]:
    """One small FLUX as a folder, as a single file, and its weights under diffusers' names."""
    return flux_model(tmp_path_factory.mktemp("flux"))


LAYERS = [
    "double_blocks.0.img_attn.qkv",
    "double_blocks.1.txt_attn.qkv",
    "double_blocks.1.img_mlp.0",
    "double_blocks.0.txt_mod.lin",
    "single_blocks.0.linear1",
    "single_blocks.1.linear2",
    "single_blocks.1.modulation.lin",
    "img_in",
    "vector_in.in_layer",
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
]


def factors_for(shapes: Mapping[str, tuple[int, ...]], rank: int = 3) -> dict[str, tuple[Any, Any]]:
    rng = np.random.default_rng(5)
    return {
        layer: (rng.normal(0, 0.2, (shapes[layer][0], rank)), rng.normal(0, 0.2, (rank, shapes[layer][1])))
        for layer in LAYERS
    }


def lora_in(dialect: str, path: Path, factors: Mapping[str, tuple[Any, Any]], alpha: float) -> Path:
    """A LoRA with the single file's names: kohya's spelling, ComfyUI's, and ComfyUI's with kohya's ends."""
    tensors = {}
    for layer, (up, down) in factors.items():
        if dialect == "kohya":
            stem, ends = f"lora_unet_{layer.replace('.', '_')}", ("lora_up", "lora_down")
        else:
            stem = f"diffusion_model.{layer}"
            ends = ("lora_B", "lora_A") if dialect == "comfyui" else ("lora_up", "lora_down")
        for end, factor in zip(ends, (up, down), strict=True):
            tensors[f"{stem}.{end}.weight"] = torch.from_numpy(factor).float()
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("dialect", ["kohya", "comfyui", "comfyui-up-down"])
def test_the_single_files_names_bake_into_the_file_and_into_the_folder(
    dialect: str, model: Any, tmp_path: Path
) -> None:
    folder, file, _ = model
    before = read(file)
    shapes = {key.removesuffix(".weight"): tuple(t.shape) for key, t in before.items()}
    factors = factors_for(shapes)
    lora = lora_in(dialect, tmp_path / "lora.safetensors", factors, 1.5)
    adapter = open_adapter(lora)
    assert len(adapter.modules) == len(LAYERS)
    bake(plan_of(file, Step("lora", lora, 0.8)), tmp_path / "out.safetensors")
    bake(plan_of(folder, Step("lora", lora, 0.8)), tmp_path / "out")
    found = read(tmp_path / "out.safetensors")
    other = as_single_file(read(tmp_path / "out"))
    for key, tensor in before.items():
        layer = key.removesuffix(".weight")
        if layer not in factors:
            assert torch.equal(found[key], tensor)
            assert torch.equal(other[key], tensor)
            continue
        up, down = (factor.astype(np.float32).astype(np.float64) for factor in factors[layer])
        expected = tensor.double().numpy() + 0.8 * 1.5 / 3 * up @ down
        for result in (found[key], other[key]):
            gap = np.linalg.norm(result.double().numpy() - expected)
            assert gap <= ROUNDED * np.linalg.norm(expected), key


def test_kohyas_names_agree_with_the_converter_of_diffusers(tmp_path: Path) -> None:
    """At FLUX's true widths, the only ones that diffusers' converter knows; the base is a header alone."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    shapes = single_file_shapes(1, 1)
    base = open_base(write_holes(tmp_path / "flux.safetensors", shapes, "BF16"))
    rng = np.random.default_rng(1)
    tensors = {}
    for key, shape in shapes.items():
        layer, _, kind = key.rpartition(".")
        if kind == "weight" and len(shape) == 2 and "final_layer" not in layer:
            stem = f"lora_unet_{layer.replace('.', '_')}"
            tensors[f"{stem}.lora_up.weight"] = torch.from_numpy(rng.standard_normal((shape[0], 2))).float()
            tensors[f"{stem}.lora_down.weight"] = torch.from_numpy(rng.standard_normal((2, shape[1]))).float()
            tensors[f"{stem}.alpha"] = torch.tensor(0.5)
    path = tmp_path / "kohya.safetensors"
    save_file(tensors, path)
    theirs = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    plan = plan_of(base.path, Step("lora", path))
    ours = plan.steps[0].adapter.modules
    layers = {key.rpartition(".lora_")[0].removeprefix("transformer.") for key in theirs}
    assert {name.path for name in ours} == layers
    for name, module in ours.items():
        assert isinstance(module, LoraModule)
        keys = [
            key for key in theirs if key.rpartition(".lora_")[0].removeprefix("transformer.") == name.path
        ]
        A, B = (theirs[key].double().numpy() for key in sorted(keys))
        mine = module.factors()
        probe = rng.standard_normal((module.in_features, 2))
        np.testing.assert_allclose(
            module.scale * mine[0] @ (mine[1] @ probe), B @ (A @ probe), rtol=1e-3, atol=1e-3
        )


def test_diffusers_names_bake_into_the_single_file(model: Any, tmp_path: Path) -> None:
    """Rows of stacks, and the layer with swapped halves."""
    _, file, state = model
    rng = np.random.default_rng(2)
    tensors, expected = {}, {key: tensor.double() for key, tensor in state.items()}
    for path in (
        "transformer_blocks.0.attn.to_k",
        "transformer_blocks.1.attn.add_v_proj",
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.1.attn.to_q",
        "transformer_blocks.0.ff.net.2",
        "norm_out.linear",
        "proj_out",
    ):
        out, inner = state[f"{path}.weight"].shape
        up, down = (torch.from_numpy(rng.normal(0, 0.2, shape)).float() for shape in ((out, 2), (2, inner)))
        tensors |= {f"transformer.{path}.lora_B.weight": up, f"transformer.{path}.lora_A.weight": down}
        expected[f"{path}.weight"] = expected[f"{path}.weight"] + up.double() @ down.double()
    save_file(tensors, tmp_path / "lora.safetensors")
    bake(plan_of(file, Step("lora", tmp_path / "lora.safetensors")), tmp_path / "out.safetensors")
    wanted = as_single_file(expected)
    for key, tensor in read(tmp_path / "out.safetensors").items():
        assert torch.linalg.norm(tensor.double() - wanted[key]) <= ROUNDED * torch.linalg.norm(wanted[key]), (
            key
        )


@pytest.mark.parametrize("buffer", [None, 300])
def test_a_para_in_diffusers_names_then_a_lora_in_kohyas(
    buffer: int | None, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both reach the same rows of the same stacks, in whatever pieces the file is read."""
    if buffer:
        monkeypatch.setattr(tasks, "BUFFER_BYTES", buffer)
        monkeypatch.setattr(stream, "BUFFER_BYTES", buffer)
    folder, file, state = model
    layers = [
        f"transformer.{path}"
        for path in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "x_embedder")
    ]
    shapes = {f"transformer.{key.removesuffix('.weight')}": tuple(t.shape) for key, t in state.items()}
    bases = random_bases(shapes, layers, 2)
    para = para_file(tmp_path / "para.safetensors", bases, "flux", dtype="F32")
    stacked = {key.removesuffix(".weight"): tuple(t.shape) for key, t in read(file).items()}
    factors = factors_for(stacked)
    lora = lora_in("kohya", tmp_path / "lora.safetensors", factors, 3.0)
    reduced = {key: tensor.double() for key, tensor in state.items()}
    for layer, B in bases.items():
        key = f"{layer.partition('.')[2]}.weight"
        reduced[key] = torch.from_numpy(remove(reduced[key].numpy(), B.astype(np.float32)))
    wanted = as_single_file(reduced)
    for layer, (up, down) in factors.items():
        product = up.astype(np.float32).astype(np.float64) @ down.astype(np.float32).astype(np.float64)
        wanted[f"{layer}.weight"] = wanted[f"{layer}.weight"] + torch.from_numpy(product)
    steps = (Step("para", para), Step("lora", lora))
    bake(plan_of(file, *steps), tmp_path / "out.safetensors")
    bake(plan_of(folder, *steps), tmp_path / "out")
    for found in (read(tmp_path / "out.safetensors"), as_single_file(read(tmp_path / "out"))):
        for key, tensor in found.items():
            gap = torch.linalg.norm(tensor.double() - wanted[key])
            assert gap <= ROUNDED * torch.linalg.norm(wanted[key]), key


def test_a_para_on_a_stack_bakes_into_the_single_file_alone(model: Any, tmp_path: Path) -> None:
    """Its directions mix the rows of q, k and v: it cannot be divided among a folder's layers."""
    folder, file, _ = model
    layer = "transformer.double_blocks.0.img_attn.qkv"
    bases = random_bases({layer: (3 * WIDTH, WIDTH)}, [layer], 2)
    para = para_file(tmp_path / "para.safetensors", bases, "flux", dtype="F32")
    bake(plan_of(file, Step("para", para)), tmp_path / "out.safetensors")
    key = "double_blocks.0.img_attn.qkv.weight"
    expected = remove(read(file)[key].double().numpy(), bases[layer].astype(np.float32))
    found = read(tmp_path / "out.safetensors")[key].double().numpy()
    assert np.linalg.norm(found - expected) <= ROUNDED * np.linalg.norm(expected)
    with pytest.raises(UnmatchedError) as caught:
        plan_of(folder, Step("para", para))
    assert layer in str(caught.value.found)
    assert "single file" in str(caught.value.hint)


def test_a_stack_as_one_layer_and_one_by_one_is_refused(model: Any, tmp_path: Path) -> None:
    _, file, _ = model
    layers = ["transformer.double_blocks.0.img_attn.qkv", "transformer.transformer_blocks.0.attn.to_q"]
    shapes = {layers[0]: (3 * WIDTH, WIDTH), layers[1]: (WIDTH, WIDTH)}
    paths = []
    for i, layer in enumerate(layers):
        bases = random_bases(shapes, [layer], 2)
        paths.append(para_file(tmp_path / f"{i}.safetensors", bases, "flux"))
    with pytest.raises(UsageError, match="one by one"):
        plan_of(file, *(Step("para", path) for path in paths))


def test_both_spellings_of_one_layer_in_a_file_are_refused(model: Any, tmp_path: Path) -> None:
    up, down = torch.ones(WIDTH, 1), torch.ones(1, WIDTH)
    stems = (
        "diffusion_model.double_blocks.0.img_attn.proj",
        "transformer.transformer_blocks.0.attn.to_out.0",
    )
    tensors = {
        f"{stem}.lora_{end}.weight": t + number
        for number, stem in enumerate(stems)
        for end, t in (("B", up), ("A", down))
    }
    save_file(tensors, tmp_path / "l.safetensors")
    for base in model[:2]:
        with pytest.raises(AdapterError, match="same layer of the base"):
            plan_of(base, Step("lora", tmp_path / "l.safetensors"))


def test_a_lora_whose_stack_is_too_small(model: Any, tmp_path: Path) -> None:
    up, down = torch.ones(2 * WIDTH, 1), torch.ones(1, WIDTH)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, tmp_path / "l.safetensors")
    for base in model[:2]:
        with pytest.raises(ShapeError):
            plan_of(base, Step("lora", tmp_path / "l.safetensors"))


def test_kohya_numbers_t5_as_the_third_encoder(tmp_path: Path) -> None:
    transformer, encoder = zoo.random_model("flux"), zoo.random_model("t5")
    folder = zoo.save_pipeline(tmp_path / "p", {"transformer": transformer, "text_encoder_2": encoder})
    stem = "lora_te3_encoder_block_1_layer_0_SelfAttention_q"
    up, down = torch.ones(16, 1), torch.ones(1, 16)
    save_file({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, tmp_path / "l.safetensors")
    plan = plan_of(folder, Step("lora", tmp_path / "l.safetensors"))
    name = ModuleName("text_encoder_2", "encoder.block.1.layer.0.SelfAttention.q")
    assert plan.steps[0].matched == (name,)


def test_adapters_of_both_namings_are_compared_on_their_base(model: Any, tmp_path: Path) -> None:
    folder, file, _ = model
    shapes = shapes_of(folder)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    para = para_file(tmp_path / "para.safetensors", random_bases(shapes, [layer], 2), "flux")
    stacked = {key.removesuffix(".weight"): tuple(t.shape) for key, t in read(file).items()}
    lora = lora_in("kohya", tmp_path / "lora.safetensors", factors_for(stacked), 3.0)
    adapters = [open_adapter(para), open_adapter(lora)]
    for base in (None, folder, file):
        (pair,) = compare(adapters, None if base is None else open_base(base)).pairs
        assert [str(each.name) for each in pair.layers] == [layer]
