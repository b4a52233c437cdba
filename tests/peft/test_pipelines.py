"""PaRa files on diffusers' pipelines: the picture of a loaded PaRa is that of the baked checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baking import lora_file, para_file, plan_of, random_bases, random_factors, shapes_of
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from rounding import dot_error
from small_models import distance
from tiny_pipelines import sd_pipeline, sdxl_pipeline
from torch import nn

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.errors import FamilyError, ShapeError, UnmatchedError, UsageError
from paramerge.formats import open_adapter
from paramerge.generation.loading import load_pipeline
from paramerge.models.names import ModuleName
from paramerge.peft import (
    PaRaConfig,
    fuse,
    hoist_bases,
    load_para,
    paper_config,
    para_layers,
    save_para,
    unfuse,
)

EPS = torch.finfo(torch.float32).eps
PARTS = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module", params=[sd_pipeline, sdxl_pipeline], ids=["sd15", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[Path], tuple[Path, Path]] = request.param
    return make(tmp_path_factory.mktemp("model"))[0]


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_pipeline(tmp_path_factory.mktemp("sd"))[0]


def some_layers(base: Path, every: int = 25) -> list[str]:
    """Layers of every part and kind, convolutions included."""
    names = [name for name in shapes_of(base) if not name.startswith("vae.")]
    return names[::every] + [name for name in names if name.startswith("text_encoder")][:: every // 3]


def files(base: Path, folder: Path) -> tuple[Path, Path]:
    shapes, architecture = shapes_of(base), open_base(base).architecture
    a = para_file(folder / "a.safetensors", random_bases(shapes, some_layers(base), 3, 1), architecture)
    b = para_file(folder / "b.safetensors", random_bases(shapes, some_layers(base, 20), 2, 2), architecture)
    return a, b


def pipeline_of(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    pipeline = load_pipeline(open_base(base), dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(pipeline: Any) -> torch.Tensor:
    """The latents after two steps: without the decoder nothing hides a difference."""
    result = pipeline("a red fox", num_inference_steps=2, height=64, width=64, output_type="latent",
                      generator=torch.Generator().manual_seed(4))  # fmt: skip
    latents: torch.Tensor = result.images
    assert bool(torch.isfinite(latents).all())
    return latents


@pytest.mark.parametrize("merge", ["joint", "sequential"])
def test_a_loaded_para_draws_what_the_baked_checkpoint_draws(base: Path, tmp_path: Path, merge: str) -> None:
    """Two PaRas at strengths, on UNet and text encoders, and fused as well."""
    a, b = files(base, tmp_path)
    plan = plan_of(base, Step("para", a, 0.7), Step("para", b), merge=merge, dtype="fp32")
    want = picture(pipeline_of(bake(plan, tmp_path / "baked").output))
    pipeline = pipeline_of(base)
    plain = picture(pipeline)
    assert load_para(pipeline, a, strength=0.7, merge=merge) == "a"
    load_para(pipeline, b, merge=merge)
    # rounding grows by some 1e3 on its way through the model
    assert distance([picture(pipeline)], [want]) < 2000 * EPS
    assert distance([plain], [want]) > 1e-2
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    fuse(pipeline)
    assert distance([picture(pipeline)], [want]) < 2000 * EPS
    unfuse(pipeline)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())


def test_what_is_saved_is_what_bake_reads(base: Path, tmp_path: Path) -> None:
    a, _ = files(base, tmp_path)
    pipeline = pipeline_of(base)
    load_para(pipeline, a)
    save_para(pipeline, tmp_path / "again.safetensors", dtype="F32", metadata={"made.by": "test"})
    first, again = open_adapter(a), open_adapter(tmp_path / "again.safetensors")
    assert again.family == "para"
    assert again.architecture == open_base(base).architecture
    assert again.metadata["made.by"] == "test"
    assert set(again.modules) == set(first.modules)
    assert {name.component for name in again.modules} >= {"unet", "text_encoder"}
    for name, module in again.modules.items():
        Q = module.basis.read_exact().astype(np.float64)
        B = first.modules[name].basis.read_exact().astype(np.float64)
        near = 4 * dot_error(len(Q))
        assert np.allclose(Q.T @ Q, np.eye(Q.shape[1]), rtol=0, atol=near)
        assert np.linalg.norm(B - Q @ (Q.T @ B)) < near * np.linalg.norm(B)


def test_diffusers_own_calls(sd: Path, tmp_path: Path) -> None:
    """set_adapters, strengths, disable, fuse_lora, unload and delete of the pipeline and the UNet."""
    a, b = files(sd, tmp_path)
    pipeline = pipeline_of(sd)
    plain = picture(pipeline)
    load_para(pipeline, a)
    alone = picture(pipeline)
    load_para(pipeline, b)
    both = picture(pipeline)
    assert set(pipeline.get_list_adapters()["unet"]) == {"a", "b"}
    pipeline.set_adapters("a")
    assert torch.equal(picture(pipeline), alone)
    pipeline.set_adapters(["a", "b"], [1.0, 1.0])
    assert torch.equal(picture(pipeline), both)
    pipeline.set_adapters(["a"], [0.0])
    assert distance([picture(pipeline)], [plain]) < 100 * EPS
    pipeline.set_adapters(["a"], [1.0])
    pipeline.disable_lora()
    assert torch.equal(picture(pipeline), plain)
    pipeline.enable_lora()
    assert torch.equal(picture(pipeline), alone)
    pipeline.fuse_lora(components=["unet", "text_encoder"])
    assert distance([picture(pipeline)], [alone]) < 2000 * EPS
    pipeline.unfuse_lora(components=["unet", "text_encoder"])
    assert torch.equal(picture(pipeline), alone)
    pipeline.delete_adapters("a")
    pipeline.set_adapters("b")
    assert "a" not in pipeline.unet.peft_config
    assert distance([picture(pipeline)], [alone]) > 1e-3
    pipeline.fuse_lora(components=["unet", "text_encoder"])
    fused = picture(pipeline)
    pipeline.unload_lora_weights()
    assert not any(isinstance(module, BaseTunerLayer) for module in pipeline.unet.modules())
    assert torch.equal(picture(pipeline), fused)


@pytest.mark.parametrize("para_first", [True, False])
def test_with_a_lora_of_diffusers(sd: Path, tmp_path: Path, para_first: bool) -> None:
    """Loaded in any order it is the bake of PaRa, then LoRA."""
    shapes = shapes_of(sd)
    a, _ = files(sd, tmp_path)
    # diffusers reads kohya's scale and ours alike where alpha is the rank
    lora = lora_file(tmp_path / "l.safetensors", random_factors(shapes, some_layers(sd), 2), alpha=2.0)
    plan = plan_of(sd, Step("para", a), Step("lora", lora), dtype="fp32")
    want = picture(pipeline_of(bake(plan, tmp_path / "baked").output))
    pipeline = pipeline_of(sd)
    if para_first:
        load_para(pipeline, a)
    pipeline.load_lora_weights(lora, adapter_name="lora")
    if not para_first:
        load_para(pipeline, a)
    pipeline.set_adapters(["a", "lora"])
    assert distance([picture(pipeline)], [want]) < 2000 * EPS
    pipeline.fuse_lora(components=["unet", "text_encoder"])
    assert distance([picture(pipeline)], [want]) < 2000 * EPS
    pipeline.unload_lora_weights()
    assert distance([picture(pipeline)], [want]) < 2000 * EPS


def test_half_precision_pipelines(sd: Path, tmp_path: Path) -> None:
    a, _ = files(sd, tmp_path)
    want = pipeline_of(sd)
    load_para(want, a)
    half = pipeline_of(sd, torch.bfloat16)
    load_para(half, a)
    assert {layer.para_B["a"].dtype for _, layer in para_layers(half.unet)} == {torch.float32}
    assert distance([picture(half)], [picture(want)]) < 0.1
    fuse(half)
    before = copy.deepcopy(half.unet.state_dict())
    unfuse(half)
    fuse(half)
    assert all(torch.equal(value, before[name]) for name, value in half.unet.state_dict().items())


def test_a_bare_unet(sd: Path, tmp_path: Path) -> None:
    shapes = shapes_of(sd)
    layers = [name for name in some_layers(sd) if name.startswith("unet.")]
    file = para_file(tmp_path / "u.v1.safetensors", random_bases(shapes, layers, 2), "sd15")
    unet = pipeline_of(sd).unet
    assert load_para(unet, file) == "u_v1"
    assert unet.active_adapters() == ["u_v1"]
    save_para(unet, tmp_path / "x.safetensors")
    assert len(open_adapter(tmp_path / "x.safetensors").modules) == len(layers)
    assert not any(p.requires_grad for name, p in unet.named_parameters() if "para_B" in name)
    load_para(unet, file, adapter_name="more", trainable=True)
    assert {name for name, p in unet.named_parameters() if p.requires_grad and "para_B" in name} == {
        name for name, _ in unet.named_parameters() if "para_B.more" in name
    }


def test_what_does_not_fit_is_refused_before_anything_is_loaded(sd: Path, tmp_path: Path) -> None:
    shapes = shapes_of(sd)
    a, _ = files(sd, tmp_path)
    pipeline = pipeline_of(sd)
    with pytest.raises(UnmatchedError, match="text_encoder"):
        load_para(pipeline.unet, a)
    layer = "unet.mid_block.resnets.0.conv1"
    wrong = para_file(tmp_path / "w.safetensors", {layer: np.eye(shapes[layer][0] + 1)[:, :2]})
    with pytest.raises(ShapeError, match="conv1"):
        load_para(pipeline, wrong)
    lora = lora_file(tmp_path / "l.safetensors", random_factors(shapes, [layer], 2))
    with pytest.raises(FamilyError):
        load_para(pipeline, lora)
    assert not list(para_layers(pipeline.unet))
    load_para(pipeline, a)
    with pytest.raises(UsageError, match="that name"):
        load_para(pipeline, a)
    with pytest.raises(UsageError, match="no text encoder"):
        load_para(object(), a)
    with pytest.raises(UsageError, match="which part"):
        load_para(pipeline.vae, a)
    with pytest.raises(UsageError, match="no such PaRa"):
        save_para(pipeline, tmp_path / "y.safetensors", adapter_name="z")


def test_saving_needs_a_name_where_there_are_two(sd: Path, tmp_path: Path) -> None:
    pipeline = pipeline_of(sd)
    with pytest.raises(UsageError, match="no PaRa at all"):
        save_para(pipeline, tmp_path / "y.safetensors")
    for file in files(sd, tmp_path):
        load_para(pipeline, file)
    with pytest.raises(UsageError, match="a, b"):
        save_para(pipeline, tmp_path / "y.safetensors")
    pipeline.unet.get_submodule("mid_block.resnets.0.conv1")


def step_gradients(unet: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    config = unet.config
    size = (2, config.in_channels, 8, 8)
    latents, target = (torch.randn(size, generator=generator) for _ in range(2))
    text = torch.randn(2, 5, config.cross_attention_dim, generator=generator)
    unet.train()
    unet.zero_grad()
    found = unet(latents, torch.tensor([3, 700]), encoder_hidden_states=text).sample
    (found.float() - target).square().mean().backward()
    return {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("subset", ["fmt", "ex-ca"])
def test_gradient_checkpointing_gives_the_same_gradients(sd: Path, subset: str) -> None:
    unet = pipeline_of(sd).unet
    unet.add_adapter(paper_config(subset, r=2, gamma=None), "p")
    want = step_gradients(unet)
    assert len(want) == len(list(para_layers(unet))) > 20
    # where a picture is down to one place, self attention has nothing to choose and its q and k no gradient
    assert sum(float(grad.norm()) > 0 for grad in want.values()) > 0.8 * len(want)
    unet.enable_gradient_checkpointing()
    for _ in range(2):  # the second time with all bases made before
        found = step_gradients(unet)
        assert set(found) == set(want)
        assert distance([found[name] for name in want], list(want.values())) < 1e-5
        hoist_bases(unet)


def test_every_layer_of_a_unet_can_have_one(sd: Path) -> None:
    """Also those outside of the paper's subsets: feed-forward, embeddings, the first and last convolution."""
    unet = pipeline_of(sd).unet
    kinds = [
        "proj_in",
        "proj_out",
        "net.0.proj",
        "net.2",
        "linear_1",
        "linear_2",
        "conv_in",
        "conv_out",
        "conv",
    ]
    unet.add_adapter(PaRaConfig(r=1, target_modules=kinds, init="orthonormal"), "p")
    grads = step_gradients(unet)
    assert len(grads) == len(list(para_layers(unet))) > 15
    assert all(bool(torch.isfinite(grad).all()) for grad in grads.values())


def test_compiled(sd: Path) -> None:
    """Traced whole and differentiated by torch.compile; the eager backend leaves out the code generator."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 1))
    model = inject_adapter_in_model(PaRaConfig(r=2, target_modules=["0", "2"], init="orthonormal"), layer)
    x = torch.randn(5, 6)
    results = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == 3
    assert distance(results[1], results[0]) < 1e-5
    model.eval()
    with torch.no_grad():
        assert distance([torch.compile(model, backend="aot_eager", fullgraph=True)(x)], [model(x)]) < 1e-5


def test_state_of_a_training_is_saved_and_loaded_by_accelerate(sd: Path, tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    unet = pipeline_of(sd).unet
    unet.add_adapter(paper_config("sao", r=2, gamma=None), "p")
    trained = [p for p in unet.parameters() if p.requires_grad]
    unet, optimizer = accelerator.prepare(unet, torch.optim.AdamW(trained, 1e-2, weight_decay=0))
    step_gradients(unet)
    optimizer.step()
    accelerator.save_state(tmp_path / "state")
    kept = [p.detach().clone() for p in trained]
    step_gradients(unet)
    optimizer.step()
    after = [p.detach().clone() for p in trained]
    accelerator.load_state(tmp_path / "state")
    assert all(torch.equal(p, q) for p, q in zip(trained, kept, strict=True))
    step_gradients(unet)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(trained, after, strict=True))


def test_names_of_text_encoder_layers_are_the_files(sd: Path, tmp_path: Path) -> None:
    pipeline = pipeline_of(sd)
    pipeline.text_encoder.add_adapter(PaRaConfig(r=1, target_modules=["q_proj"]), "p")
    save_para(pipeline.text_encoder, tmp_path / "t.safetensors")
    names = set(open_adapter(tmp_path / "t.safetensors").modules)
    assert ModuleName("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj") in names
