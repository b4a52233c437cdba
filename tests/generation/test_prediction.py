"""What a single file says that its model predicts, and latents with statistics of their own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import sd_pipeline

from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError, UsageError
from paramerge.generation.latents import scaled, unscaled
from paramerge.generation.loaded import check_text_encoders
from paramerge.generation.loading import load_pipeline
from paramerge.generation.prediction import set_prediction, stated_prediction
from paramerge.training.objectives.diffusion import noise_schedule


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The configuration of a model that predicts noise, and a single file that fits it."""
    folder, single = sd_pipeline(tmp_path_factory.mktemp("sd"))
    DDIMScheduler(beta_start=0.00085, beta_end=0.012).save_pretrained(folder / "scheduler")
    return folder, single


def marked(file: Path, target: Path, metadata: dict[str, str], *marks: str) -> Path:
    with safe_open(file, "pt") as opened:
        metadata = {**(opened.metadata() or {}), **metadata}
    save_file(load_file(file) | {mark: torch.zeros(0) for mark in marks}, target, metadata)
    return target


@pytest.mark.parametrize(
    ("metadata", "marks", "kind"),
    [
        ({}, ("v_pred", "ztsnr"), "v_prediction"),
        ({}, ("v_pred",), "v_prediction"),
        ({"modelspec.prediction_type": "v"}, (), "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, (), "epsilon"),
    ],
)
def test_marks_of_a_single_file_reach_the_schedule(
    metadata: dict[str, str], marks: tuple[str, ...], kind: str, model: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, single = model
    base = open_base(marked(single, tmp_path / "m.safetensors", metadata, *marks))
    pipeline = load_pipeline(base, torch.float32, folder)
    schedule = noise_schedule(pipeline)
    assert schedule.config.prediction_type == kind
    assert bool(schedule.config.rescale_betas_zero_snr) == ("ztsnr" in marks)
    if "ztsnr" in marks:
        assert float(schedule.alphas_cumprod[-1]) < 1e-6
    assert stated_prediction(open_base(folder)) == {}


def test_the_autoencoder_has_a_dtype_of_its_own(model: tuple[Path, Path]) -> None:
    """Read from the file as such: what was rounded before would stay so."""
    folder, single = model
    for base, config in ((open_base(folder), None), (open_base(single), folder)):
        found = load_pipeline(base, torch.bfloat16, config, vae_dtype=torch.float32)
        whole = load_pipeline(base, torch.float32, config)
        assert (found.unet.dtype, found.text_encoder.dtype) == (torch.bfloat16, torch.bfloat16)
        wanted = whole.vae.state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in found.vae.state_dict().items())


def test_a_text_encoder_that_was_started_at_random_is_refused(
    model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers before 5.6 does where it looks for other names."""
    folder, single = model
    for base, config in ((open_base(folder), None), (open_base(single), folder)):
        pipeline = load_pipeline(base, torch.bfloat16, config)  # its own weights pass, rounded too
        torch.nn.init.normal_(pipeline.text_encoder.encoder.layers[0].mlp.fc1.weight)
        with pytest.raises(CheckpointError, match="does not load this text encoder"):
            check_text_encoders(pipeline, base)


def test_a_prediction_without_a_loss_is_refused() -> None:
    pipeline: Any = SimpleNamespace(scheduler=DDIMScheduler(prediction_type="sample"))
    with pytest.raises(UsageError, match="no loss") as caught:
        noise_schedule(pipeline)
    assert caught.value.found == "sample"
    set_prediction(pipeline, prediction_type="v_prediction")
    assert noise_schedule(pipeline).config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.5, "latents_mean": None, "latents_std": None},
        {"scaling_factor": 0.5, "shift_factor": 0.25},
        {"scaling_factor": 0.5, "latents_mean": [0.1, -2.0], "latents_std": [3.0, 0.5]},
    ],
)
def test_latents_and_back(config: dict[str, Any]) -> None:
    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vae = SimpleNamespace(**config)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    m = torch.tensor(mean or [config.get("shift_factor", 0.0)] * 2).double().view(-1, 1, 1)
    s = torch.tensor(std or [1.0, 1.0]).double().view(-1, 1, 1)
    torch.testing.assert_close(scaled(vae, z), (z - m) * 0.5 / s)
    torch.testing.assert_close(unscaled(vae, scaled(vae, z)), z)
    torch.testing.assert_close(scaled(vae, z, deviation=True), scaled(vae, z + 0.0) - scaled(vae, 0 * z))
