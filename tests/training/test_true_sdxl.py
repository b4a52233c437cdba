"""SDXL's UNet as it is, with random weights: two steps of a PaRa on a CPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from blueprint_configs import folder_configs
from blueprints import sdxl
from diffusers import DDPMScheduler, UNet2DConditionModel

from paramerge.formats import open_adapter
from paramerge.peft import paper_config, para_layers, save_para
from paramerge.training.batches import Batch
from paramerge.training.config import TrainConfig
from paramerge.training.objective import loss_of
from paramerge.training.objectives.diffusion import Diffusion
from paramerge.training.prompts import Prompts


@pytest.mark.slow
def test_two_steps(tmp_path: Path) -> None:
    """2.6 billion parameters in bfloat16 (5 GB); of 346 layers each has a PaRa that learns."""
    config = folder_configs(sdxl(1))["unet/config.json"]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        unet = UNet2DConditionModel.from_config(config)
    finally:
        torch.set_default_dtype(torch.float32)
    unet.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # gamma = 1/40 leaves no layer of SDXL alone at this rank
        unet.add_adapter(paper_config("ex-ca", r=4, init="orthonormal"), "para")
    unet.enable_gradient_checkpointing()
    unet.train()
    layers = dict(para_layers(unet))
    assert len(layers) == 346
    trained = [layer.para_B["para"] for layer in layers.values()]
    assert sum(p.numel() for p in trained) == 4 * sum(p.shape[0] for p in trained)
    settings = TrainConfig(model=Path(), instance_folder=Path(), instance_prompt="x", output=Path())
    draw = torch.Generator().manual_seed(1)
    shape = (1, 4, 8, 8)
    batch = Batch(
        torch.randn(shape, generator=draw),
        torch.randn(shape, generator=draw),
        torch.tensor([400]),
        ("x",),
        torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
        1,
    )
    prompts = Prompts(torch.randn(1, 77, 2048, generator=draw), torch.randn(1, 1280, generator=draw))
    optimizer = torch.optim.AdamW(trained, 1e-3, weight_decay=0)
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    before = [p.detach().clone() for p in trained]
    losses = []
    for _ in range(2):
        loss = loss_of(unet, batch, prompts, Diffusion(schedule), settings, torch.bfloat16)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert all(torch.isfinite(torch.tensor(losses)))
    moved = sum(not torch.equal(p, q) for p, q in zip(trained, before, strict=True))
    assert moved == len(trained)
    save_para(unet, tmp_path / "para.safetensors")
    adapter = open_adapter(tmp_path / "para.safetensors")
    assert (adapter.architecture, len(adapter.modules)) == ("sdxl", 346)
