"""Folders that diffusers and transformers themselves saved, in each form that they know."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from blueprints import Blueprint
from checkpoint_files import blueprint, configs, layers

from paramerge.checkpoints.layout import open_base
from paramerge.files.tensors import stored
from paramerge.models.clip_keys import canonical_key
from paramerge.models.names import ModuleName


def pipeline(architecture: str) -> Any:
    """A pipeline of diffusers with small random models and no tokenizer."""
    import diffusers
    import transformers

    plan: Blueprint = blueprint(architecture, 16)
    config = configs(architecture, 16)
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel.from_config(config["unet"]),
        "vae": diffusers.AutoencoderKL.from_config(config["vae"]),
        "scheduler": diffusers.EulerDiscreteScheduler(steps_offset=1),
        "tokenizer": None,
    }
    for encoder in plan.encoders:
        kind = getattr(transformers, config[encoder.component]["architectures"][0])
        parts[encoder.component] = kind(transformers.CLIPTextConfig.from_dict(config[encoder.component]))
    if architecture == "sdxl":
        return diffusers.StableDiffusionXLPipeline(tokenizer_2=None, **parts)
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **extra)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", [None, "400KB"])
@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_a_saved_pipeline(architecture: str, shard: str | None, variant: str | None, tmp_path: Path) -> None:
    pipe = pipeline(architecture)
    components = [name for name in blueprint(architecture).components if name != "vae"]
    sizes = {} if shard is None else {"max_shard_size": shard}
    pipe.save_pretrained(tmp_path, variant=variant, **sizes)
    base = open_base(tmp_path, variant)
    assert (base.layout, base.architecture) == ("diffusers-folder", architecture)
    assert not base.left_out
    assert not base.warnings
    counts = Counter(file.component for file in base.files)
    assert list(counts) == [*components, "vae"]
    assert all((count > 1) == (shard is not None) for name, count in counts.items() if name == "unet")
    accounted = {str(file.relative) for file in base.files} | {str(path) for path in base.companions}
    assert accounted == {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}

    expected = {}
    for component in components:
        for path, shape in layers(getattr(pipe, component)).items():
            name = (
                path
                if component == "unet"
                else (canonical_key(f"{path}.weight") or "").removesuffix(".weight")
            )
            expected[ModuleName(component, name)] = shape
    assert {n: t.shape for file in base.files for n, t in file.targets.items()} == expected


def test_the_target_of_a_layer_holds_the_numbers_of_the_layer(tmp_path: Path) -> None:
    import torch

    pipe = pipeline("sdxl")
    pipe.save_pretrained(tmp_path, max_shard_size="400KB")
    for file in open_base(tmp_path).files:
        for name, target in file.targets.items():
            model = getattr(pipe, name.component)
            path = name.path
            if not hasattr(model, "text_model") and name.component != "unet":
                path = path.removeprefix("text_model.")
            weight = model.get_submodule(path).weight
            ours = torch.from_numpy(stored(file.header, target.key).read_exact())
            assert torch.equal(ours, weight.detach()), name
