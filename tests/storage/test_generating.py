"""A pipeline of a quantised checkpoint has its true weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from baking import lora_file, plan_of, random_factors, shapes_of
from tiny_pipelines import sd_pipeline

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.generation.loading import load_pipeline


@pytest.mark.parametrize("kind", ["fp8", "int8-row"])
def test_a_pipeline_of_a_quantised_file_has_the_true_weights(kind: str, tmp_path: Path) -> None:
    folder, single = sd_pipeline(tmp_path)
    layers = [name for name, shape in shapes_of(single).items() if name.endswith(".to_q") and len(shape) == 2]
    lora = lora_file(tmp_path / "lora.safetensors", random_factors(shapes_of(single), layers[:1], 2))
    quantised = tmp_path / "quantised.safetensors"
    bake(plan_of(single, Step("lora", lora, 0.5), quantise=kind), quantised)
    base = open_base(quantised)
    pipeline = load_pipeline(base, torch.float32, folder)
    (file,) = base.files
    codes = {target.key: name for name, target in file.targets.items() if target.key in file.quantised}
    assert len(codes) > 3
    for key, name in codes.items():
        weight = pipeline.unet.get_parameter(f"{name.path}.weight").detach().numpy()
        assert np.array_equal(weight, file.tensor(key).read_exact().astype(np.float32))
