"""What was baked, in the hands of diffusers: it loads, and acts as the adapter does that is loaded there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baking import lora_file, para_file, plan_of, random_bases, random_factors, shapes_of

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake

PIPELINES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def load_pipeline(folder: Path, architecture: str) -> Any:
    import diffusers

    missing = ["tokenizer", "safety_checker", "feature_extractor", "image_encoder"]
    missing += ["tokenizer_2"] if architecture == "sdxl" else []
    kind = getattr(diffusers, PIPELINES[architecture])
    options = dict.fromkeys(missing)
    return kind.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32, **options)


def predict(unet: Any, architecture: str) -> np.ndarray:
    """The UNet's answer to fixed random input."""
    generator = torch.Generator().manual_seed(0)
    config = unet.config
    sample = torch.randn(1, config.in_channels, 32, 32, generator=generator)
    text = torch.randn(1, 7, config.cross_attention_dim, generator=generator)
    added = None
    if architecture == "sdxl":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(1, pooled, generator=generator), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        result = unet(sample, 500, text, added_cond_kwargs=added).sample
    return result.numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_a_baked_lora_acts_as_the_loaded_one(models, tmp_path: Path, architecture: str) -> None:
    """UNet and text encoders, linear and convolution, through ``load_lora_weights``."""
    base = models(architecture, layout="diffusers-folder", dtype="F32")
    shapes = shapes_of(base)
    # what diffusers' reader of kohya files takes at uniform alpha
    kinds = (".attn1.to_", ".attn2.to_", ".resnets.0.conv1", ".self_attn.", ".mlp.")
    layers = [layer for layer in shapes if any(kind in layer for kind in kinds)]
    factors = random_factors(shapes, layers, 4, size=0.1)
    lora = lora_file(tmp_path / "l.safetensors", factors, 2.0, "F32", two_encoders=architecture == "sdxl")
    bake(plan_of(base, Step("lora", lora)), tmp_path / "out")

    plain, loaded, baked = (load_pipeline(folder, architecture) for folder in (base, base, tmp_path / "out"))
    loaded.load_lora_weights(str(lora))
    before, wanted, found = (predict(pipe.unet, architecture) for pipe in (plain, loaded, baked))
    assert distance(before, wanted) > 0.05  # the adapter does something
    # a forward pass in float32 through some sixty layers, each of which rounds
    assert distance(found, wanted) < 1e-4
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(plain, name, None) is None:
            continue
        ids = torch.tensor([[5, 9, 2, 60]])
        with torch.no_grad():
            texts = [getattr(pipe, name)(ids)[0].numpy() for pipe in (plain, loaded, baked)]
        assert distance(texts[0], texts[1]) > 0.01
        assert distance(texts[2], texts[1]) < 1e-4


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_a_baked_single_file_loads_as_the_folder_does(models, tmp_path: Path, architecture: str) -> None:
    from diffusers import UNet2DConditionModel

    folder, single = models(architecture, layout="diffusers-folder"), models(architecture)
    layers = [layer for layer in shapes_of(folder) if layer.startswith("unet.") and ".attn" in layer]
    para = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(folder), layers, 3), architecture)
    bake(plan_of(folder, Step("para", para)), tmp_path / "folder")
    bake(plan_of(single, Step("para", para)), tmp_path / "single.safetensors")
    of_folder = UNet2DConditionModel.from_pretrained(tmp_path / "folder" / "unet")
    of_file = UNet2DConditionModel.from_single_file(
        str(tmp_path / "single.safetensors"), config=str(tmp_path / "folder"), subfolder="unet"
    )
    wanted = of_folder.state_dict()
    found = of_file.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key].half(), wanted[key].half()) for key in wanted)
    assert np.array_equal(predict(of_folder.float(), architecture), predict(of_file.float(), architecture))


def test_a_reduced_layer_answers_nothing_in_the_removed_directions(models, tmp_path: Path) -> None:
    """What PaRa promises of the running model: a layer's output has no part along Q, whatever comes in."""
    base = models("sd15", layout="diffusers-folder", dtype="F32")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    bases = random_bases(shapes_of(base), [layer], 4)
    para = para_file(tmp_path / "p.safetensors", bases, dtype="F32")
    bake(plan_of(base, Step("para", para)), tmp_path / "out")
    pipe = load_pipeline(tmp_path / "out", "sd15")
    module = pipe.unet.get_submodule(layer.removeprefix("unet."))
    answer = module(torch.randn(50, module.in_features, generator=torch.Generator().manual_seed(1)))
    Q = np.linalg.qr(bases[layer])[0]
    along = np.linalg.norm(answer.detach().numpy() @ Q) / np.linalg.norm(answer.detach().numpy())
    assert along < 1e-5
