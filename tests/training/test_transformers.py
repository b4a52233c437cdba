"""FLUX.1, Stable Diffusion 3 and Z-Image: trained, baked, loaded, and the same picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from baking import plan_of
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_transformers import PIPELINES, transformer_pipeline
from training_runs import settings

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.errors import UsageError
from paramerge.formats import open_adapter
from paramerge.training import loop
from paramerge.training.loop import train
from paramerge.training.models import kind_of
from paramerge.training.objectives.flow import Flow
from paramerge.training.prompts import Prompts, together


@pytest.fixture(scope="module", params=PIPELINES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformer_pipeline(request.param, tmp_path_factory.mktemp("models"))


def loaded(folder: Path) -> Any:
    """The pipeline by diffusers alone; Stable Diffusion 3 without its third encoder."""
    index = (folder / "model_index.json").read_text()
    without = {"text_encoder_3": None, "tokenizer_3": None} if "StableDiffusion3Pipeline" in index else {}
    return diffusers.DiffusionPipeline.from_pretrained(folder, **without)  # type: ignore[no-untyped-call]


def picture(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    name = type(pipeline).__name__
    more = {} if name == "StableDiffusion3Pipeline" else {"max_sequence_length": 16}
    guidance = 0.0 if name == "ZImagePipeline" else 1.0  # where each of them leaves guidance out
    found = pipeline(
        "a noto dog", num_inference_steps=2, height=32, width=32, output_type="np",
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0), **more,
    ).images[0]  # fmt: skip
    return np.asarray(found, dtype=np.float64)


@pytest.mark.parametrize("method", ["para", "lora"])
def test_trained_baked_and_loaded_it_draws_the_picture_of_the_training(
    method: str, model: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    original = loop.load_model

    def watched(*arguments: Any) -> Any:
        seen["pipeline"], kind = original(*arguments)
        return seen["pipeline"], kind

    monkeypatch.setattr(loop, "load_model", watched)
    more: dict[str, Any] = {"method": method, "steps": 3, "resolution": 32, "batch_size": 2, "alpha": 4.0}
    more |= {"learning_rate": 5e-2, "init": "orthonormal", "random_flip": True, "held_out": dog}
    result = train(settings(model, dog, tmp_path / "a", **more))
    assert len(set(result.losses)) == 3
    adapter = open_adapter(result.adapter[0])
    assert adapter.family == method
    assert {name.component for name in adapter.modules} == {"transformer"}
    bake(plan_of(model, Step("adapter", result.adapter[0])), tmp_path / "baked")
    trained, before, baked = seen["pipeline"], loaded(model), loaded(tmp_path / "baked")
    trained.transformer.eval()
    wanted, found, plain = (picture(each) for each in (trained, baked, before))
    change = np.abs(wanted - plain).max()
    assert np.isfinite(wanted).all()
    assert change > 1e-3
    # what is stored has 11 bits, and the model goes through it twice
    assert np.abs(found - wanted).max() < 0.02 * change


def test_a_lora_is_loaded_by_diffusers(dog: Path, tmp_path: Path) -> None:
    model = transformer_pipeline("flux", tmp_path)
    more: dict[str, Any] = {"method": "lora", "steps": 1, "resolution": 32, "subset": "blocks"}
    adapter = train(settings(model, dog, tmp_path / "a", **more)).adapter[0]
    pipeline = loaded(model)
    pipeline.load_lora_weights(str(adapter))
    names = [name for name, _ in pipeline.transformer.named_parameters() if "lora_A" in name]
    assert len(names) == 8 + 4 + 5


@pytest.mark.parametrize("name", PIPELINES)
def test_the_prediction_is_what_the_pipeline_takes_for_a_step(name: str) -> None:
    """The pipeline's own loop, with a scheduler that keeps what it is given."""
    pipeline = PIPELINES[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    kind = kind_of(pipeline)
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    step = pipeline.scheduler.step

    def keep(found: torch.Tensor, time: torch.Tensor, latents: torch.Tensor, **more: Any) -> Any:
        seen.append((found, time, latents))
        return step(found, time, latents, **more)

    pipeline.scheduler.step = keep
    picture(pipeline)
    found, time, latents = seen[0]
    if name == "flux":
        found, latents = (pipeline._unpack_latents(z, 32, 32, 2) for z in (found, latents))
    config = settings(Path("m"), Path("p"), Path("o"), embedded_guidance=1.0)
    with torch.no_grad():
        prompts = kind.encode(pipeline, "a noto dog", "cpu")
        mine = kind.predict(
            pipeline.transformer, latents, time.expand(1), prompts, torch.zeros(1, 6), config, torch.float32
        )
    torch.testing.assert_close(mine, found.float(), atol=1e-4, rtol=1e-4)


def test_flow_matching_by_hand() -> None:
    objective = Flow(FlowMatchEulerDiscreteScheduler(shift=3.0), "logit_normal")
    places = torch.tensor([0, 500, 999])
    t = torch.tensor([1.0, 0.5, 0.001], dtype=torch.float64)
    s = 3 * t / (1 + 2 * t)
    torch.testing.assert_close(objective.times(places).double(), 1000 * s, atol=2e-3, rtol=1e-5)
    x, e = torch.randn(2, 3, 4, 2, 2).unbind(0)
    S = s[:, None, None, None].float()
    torch.testing.assert_close(objective.noisy(x, e, places), (1 - S) * x + S * e, atol=1e-5, rtol=1e-5)
    assert torch.equal(objective.target(x, e, places), e - x)
    assert objective.weights(places, None) is None
    draws = torch.stack([objective.draw(torch.Generator().manual_seed(i)) for i in range(400)]).double()
    share = torch.logit((draws + 0.5) / 1000)
    assert abs(float(share.mean())) < 0.2
    assert abs(float(share.std()) - 1) < 0.15
    cosmap = Flow(FlowMatchEulerDiscreteScheduler(), "cosmap").weights(places, None)
    assert cosmap is not None
    wanted = 2 / (torch.pi * (1 - 2 * t + 2 * t * t))
    torch.testing.assert_close(cosmap.double(), wanted, atol=1e-2, rtol=1e-3)


def test_texts_of_unlike_lengths_are_one_batch() -> None:
    parts = [Prompts(torch.ones(1, n, 3), None, (n,)) for n in (2, 4)]
    found = together(parts, "cpu")
    assert found.states.shape == (2, 4, 3)
    assert found.lengths == (2, 4)
    assert float(found.states[0, 2:].abs().max()) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "dreambooth"},
        {"train_text_encoder": True},
        {"min_snr_gamma": 5.0},
        {"subset": "ex-ca"},
        {"prompt_chunks": 2},
        {"resolution": 40},
    ],
)
def test_settings_that_are_for_other_models(wrong: dict[str, Any], dog: Path, tmp_path: Path) -> None:
    model = transformer_pipeline("sd3", tmp_path)
    with pytest.raises(UsageError) as caught:
        train(settings(model, dog, tmp_path / "o", **{"resolution": 32, **wrong}))
    assert caught.value.where == next(iter(wrong))
