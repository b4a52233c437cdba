"""A method's files, loaded for drawing, do to the model what the trained parameters did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_data import experiment_data
from safetensors.torch import load_file
from tiny_pipelines import sd_pipeline

from paramerge.checkpoints.layout import open_base
from paramerge.generation.loading import load_pipeline
from paramerge.training.experiments.adapted import load_variant
from paramerge.training.experiments.budgets import BUDGETS
from paramerge.training.experiments.dataset import Dataset, open_dataset
from paramerge.training.experiments.parts import trained
from paramerge.training.experiments.plan import PLACEHOLDER, Plan, Use, Variant, make_plan
from paramerge.training.experiments.registry import EXPERIMENTS
from paramerge.training.experiments.trained import kept
from paramerge.training.methods import attach

METHODS = {
    "para": 4,
    "lora": 4,
    "oft": 4,
    "loha": 2,
    "lokr": 2,
    "krona": 1,
    "svdiff": 1,
    "dreambooth": 1,
    "textual-inversion": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_pipeline(tmp_path_factory.mktemp("sd"))[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(experiment_data(tmp_path_factory.mktemp("data") / "data"))


def answer(pipeline: Any, prompt: str) -> torch.Tensor:
    """What the UNet makes of a fixed noise with the prompt."""
    torch.manual_seed(5)
    unet, size = pipeline.unet, pipeline.unet.config.sample_size
    noise = torch.randn(1, unet.config.in_channels, size, size)
    with torch.no_grad():
        states = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
        found: torch.Tensor = unet.eval()(noise, 500, encoder_hidden_states=states).sample
    return found


@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_is_what_draws(method: str, model: Path, data: Dataset, tmp_path: Path) -> None:
    more: dict[str, object] = {"subset": "attention"} if method == "oft" else {}
    training = trained(method, METHODS[method], data.subjects[0], BUDGETS["smoke"], **more)
    plan: Plan = make_plan(EXPERIMENTS["table1"], BUDGETS["smoke"], model, data)
    config = training.config(model, data, tmp_path, 1, 0)
    pipeline = load_pipeline(open_base(model), torch.float32)
    prompt = f"a noto {training.word}"
    before = answer(pipeline, "a noto butterfly" if method == "textual-inversion" else prompt)
    torch.manual_seed(0)
    parameters = attach(pipeline, config)
    with torch.no_grad():
        for parameter in parameters.parameters.values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05 * max(1.0, float(parameter.abs().mean())))
    after = answer(pipeline, prompt)
    assert float((after - before).norm() / before.norm()) > 1e-3
    folder = tmp_path / "trained" / f"{training.name}-seed0" / "at-000001"
    folder.mkdir(parents=True)
    paths = parameters.save(folder, {})
    note = {"files": [str(path.relative_to(folder)) for path in paths], "seconds": 1.0}
    (folder / "adapter.json").write_text(json.dumps(note | {"parameters": 1, "bytes": 1}))
    assert kept(plan, training, tmp_path / "trained", 1).paths == tuple(paths)
    variant = Variant((Use(training, 1),))
    loaded = load_variant(plan, variant, tmp_path / "trained", torch.float32, "cpu")
    found = answer(loaded, prompt)
    # PaRa and LoRA are saved as float16; nothing else differs by more than the rounding of float32
    tolerance = 5e-3 if method in ("para", "lora") else 1e-4
    assert float((found - after).norm() / (after - before).norm()) < tolerance
    if method == "textual-inversion":
        assert PLACEHOLDER in load_file(paths[0])
