"""What one step of the trainer is made of: pictures, draws, prompts, and the loss by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from paramerge.training.batches import Batch, make_batches
from paramerge.training.config import TrainConfig
from paramerge.training.examples import Examples, Latents
from paramerge.training.loop import _course, _follow, _optimizer
from paramerge.training.methods.krona import KronaChange
from paramerge.training.methods.svdiff import SpectralShift
from paramerge.training.methods.trained import Trained
from paramerge.training.objective import loss_of
from paramerge.training.objectives.diffusion import Diffusion, noise_schedule, snr_weights
from paramerge.training.pictures import data_hash, find_pictures, read_picture
from paramerge.training.prompts import Prompts
from paramerge.training.state import TrainingState
from paramerge.training.watching import averaged, loss_plot, smoothed

CONFIG = TrainConfig(model=Path("m"), instance_folder=Path("p"), instance_prompt="x", output=Path("o"))


# --- pictures -----------------------------------------------------------------------------------------------


def test_the_middle_square_of_a_picture(tmp_path: Path) -> None:
    """A wide picture of three colours: the middle one is left, and the corner says where it was."""
    pixels = np.zeros((40, 120, 3), np.uint8)
    for i in range(3):
        pixels[:, 40 * i : 40 * (i + 1), i] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", 80)
    assert found.pixels.shape == (80, 80, 3)
    assert (found.size, found.corner) == ((40, 120), (0, 80))
    middle = found.pixels[5:-5, 5:-5].reshape(-1, 3)
    assert (middle == [0, 255, 0]).all()


def test_transparent_is_white_and_exif_turns(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png", 16).pixels == 255).all()
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg", 16).size == (30, 20)


def test_pictures_are_found_by_name_and_hashed_by_content(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg"):
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(tmp_path / name)
    (tmp_path / "c.txt").write_text("no")
    files = find_pictures(tmp_path, "instance_folder")
    assert [path.name for path in files] == ["a.jpeg", "b.PNG"]
    before = data_hash(files)
    (tmp_path / "a.jpeg").rename(tmp_path / "aa.jpeg")
    assert data_hash(find_pictures(tmp_path, "instance_folder")) == before
    (tmp_path / "b.PNG").write_bytes((tmp_path / "aa.jpeg").read_bytes())
    assert data_hash(find_pictures(tmp_path, "instance_folder")) != before


# --- draws --------------------------------------------------------------------------------------------------


def examples(count: int = 3, flips: bool = False, prior: bool = False) -> Examples:
    def latents(first: float) -> Latents:
        n = count * (2 if flips else 1)
        mean = torch.arange(n).float()[:, None, None, None].expand(n, 2, 4, 4) + first
        return Latents(mean, torch.zeros_like(mean), torch.arange(6).float().expand(n, 6) + first, count)

    return Examples((latents(0),), (latents(100),) if prior else (), "hash")


def make_batch(
    given: Examples, config: TrainConfig, step: int, slots: Sequence[int], total: int, timesteps: int
) -> Batch:
    def draw(chance: torch.Generator) -> torch.Tensor:
        return torch.randint(timesteps, (), generator=chance)

    (batch,) = make_batches(given, config, step, slots, total, draw)
    return batch


def test_how_a_step_is_shared_does_not_matter() -> None:
    """Each slot holds the same in whatever batch it is drawn, so processes can share a step."""
    given = examples(prior=True)
    whole = make_batch(given, CONFIG, 7, range(4), 4, 1000)
    parts = [make_batch(given, CONFIG, 7, [slot], 4, 1000) for slot in range(4)]
    for name in ("latents", "noise", "timesteps", "time_ids"):
        rows = [getattr(part, name) for part in parts]
        order = torch.cat([torch.stack([row[kind] for row in rows]) for kind in range(2)])
        assert torch.equal(getattr(whole, name), order), name
    assert whole.subjects == 4
    assert whole.texts == ("x",) * 4 + ("",) * 4
    assert set(whole.latents[4:, 0, 0, 0].tolist()) <= {100.0, 101.0, 102.0}
    assert torch.equal(whole.time_ids[4:, 0], torch.full((4,), 100.0))


def test_steps_differ_and_every_picture_comes_equally_often() -> None:
    given = examples(3)
    seen = [make_batch(given, CONFIG, step, range(2), 2, 1000) for step in range(6)]
    pictures = [int(value) for batch in seen for value in batch.latents[:, 0, 0, 0]]
    assert sorted(pictures) == sorted([0, 1, 2] * 4)
    noise = torch.cat([batch.noise for batch in seen])
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 12
    assert len({int(t) for batch in seen for t in batch.timesteps}) > 8
    other = make_batch(given, replace(CONFIG, seed=1), 0, range(2), 2, 1000)
    assert not torch.equal(other.noise, seen[0].noise)


def test_flips_and_the_noise_offset() -> None:
    given = examples(4, flips=True)
    rows = torch.cat([make_batch(given, CONFIG, s, range(4), 4, 10).latents[:, 0, 0, 0] for s in range(12)])
    assert 10 < int((rows >= 4).sum()) < 38  # about half of 48
    plain = make_batch(given, CONFIG, 0, range(4), 4, 1000)
    offset = make_batch(given, replace(CONFIG, noise_offset=0.5), 0, range(4), 4, 1000)
    difference = offset.noise - plain.noise
    assert float(difference.std((2, 3)).max()) < 1e-6  # the same in all places of a channel
    assert 0.1 < float(difference[:, :, 0, 0].std()) < 1.5
    assert torch.equal(offset.latents, plain.latents)


# --- the loss -----------------------------------------------------------------------------------------------


class Guess(torch.nn.Module):
    """A UNet that always says the same, and remembers what it was asked."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: dict[str, Any] = {}

    def forward(self, sample: torch.Tensor, times: torch.Tensor, **more: Any) -> Any:
        self.asked = {"sample": sample, "times": times, **more}
        return SimpleNamespace(sample=self.answer)


def schedule(kind: str = "epsilon") -> Any:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    found = noise_schedule(SimpleNamespace(scheduler=DDIMScheduler(prediction_type=kind, **betas)))
    return Diffusion(found)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_loss_by_hand(kind: str, gamma: float | None) -> None:
    torch.manual_seed(0)
    x, eps, guess = torch.randn(3, 4, 2, 4, 4)[:, :, :, :, :].unbind(0)
    batch = Batch(
        x, eps, torch.tensor([5, 900, 300, 20]), ("a", "a", "b", "b"), torch.randn(4, 6), subjects=2
    )
    prompts = Prompts(torch.randn(4, 7, 5), torch.randn(4, 3))
    config = replace(CONFIG, min_snr_gamma=gamma, prior_weight=0.25)
    unet = Guess(guess)
    found = float(loss_of(unet, batch, prompts, schedule(kind), config, torch.float32))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - betas)[[5, 900, 300, 20]]
    a, s = np.sqrt(alpha)[:, None, None, None], np.sqrt(1 - alpha)[:, None, None, None]
    X, E, G = (part.double().numpy() for part in (x, eps, guess))
    np.testing.assert_allclose(unet.asked["sample"].numpy(), a * X + s * E, atol=1e-5)
    target = E if kind == "epsilon" else a * E - s * X
    errors = ((G - target) ** 2).mean((1, 2, 3))
    if gamma is not None:
        snr = alpha / (1 - alpha)
        errors *= np.minimum(snr, gamma) / (snr if kind == "epsilon" else snr + 1)
    assert found == pytest.approx(errors[:2].mean() + 0.25 * errors[2:].mean(), rel=1e-5)
    assert torch.equal(unet.asked["encoder_hidden_states"], prompts.states)
    added = unet.asked["added_cond_kwargs"]
    assert torch.equal(added["text_embeds"], prompts.pooled)  # type: ignore[arg-type]
    assert torch.equal(added["time_ids"], batch.time_ids)


def test_min_snr_at_zero_terminal_snr() -> None:
    fake = SimpleNamespace(alphas_cumprod=torch.tensor([0.5, 0.0]))
    assert snr_weights(fake, torch.tensor([0, 1]), 5.0, "epsilon").tolist() == [1.0, 1.0]
    assert snr_weights(fake, torch.tensor([0, 1]), 0.5, "v_prediction").tolist() == [0.25, 0.0]


# --- rates, the average, the plot ---------------------------------------------------------------------------


def test_courses_of_the_learning_rate() -> None:
    config = replace(CONFIG, steps=10, lr_warmup_steps=4)
    constant = _course(replace(config, lr_scheduler="constant"))
    assert [constant(step) for step in (0, 9)] == [1, 1]
    warm = _course(replace(config, lr_scheduler="constant_with_warmup"))
    assert [warm(step) for step in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    cosine = _course(replace(config, lr_scheduler="cosine", lr_warmup_steps=0))
    assert cosine(5) == pytest.approx(0.5)
    assert all(cosine(step) > cosine(step + 1) for step in range(9))


def test_the_average_follows_and_trades_places() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    state = TrainingState({"p": parameter}, torch.optim.SGD([parameter], 1.0), {"p": torch.zeros(3)})
    for step in range(1, 200):
        state.step = step
        with torch.no_grad():
            parameter.fill_(float(step))
        _follow(state, 0.9)
    # an exponential average lags by decay / (1 - decay) steps
    torch.testing.assert_close(state.average["p"], torch.full((3,), 199 - 9.0), atol=0.05, rtol=0)
    with averaged(state):
        assert torch.equal(parameter, state.average["p"])
    assert torch.equal(parameter, torch.full((3,), 199.0))


def test_the_running_mean_and_the_plot() -> None:
    losses = [4.0, 2.0, 0.0, 8.0]
    assert smoothed(losses, 2).tolist() == [4.0, 3.0, 1.0, 4.0]
    assert loss_plot(losses)[:4] == b"\x89PNG"


# --- what is trained ----------------------------------------------------------------------------------------


def test_weight_decay_is_not_for_a_para() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    for decays, expected in ((True, 0.01), (False, 0.0)):
        trained = Trained({"p": parameter}, lambda folder, metadata: [], decays=decays)
        (group,) = _optimizer(trained, CONFIG).param_groups
        assert (group["weight_decay"], group["lr"]) == (expected, 1e-3)


def test_spectral_shifts_do_not_turn_a_singular_value() -> None:
    W = torch.randn(5, 2, 3, 3)
    shift = SpectralShift(W)
    assert torch.equal(shift(W), W)
    with torch.no_grad():
        shift.delta.fill_(-100.0)
    torch.testing.assert_close(shift(W), torch.zeros_like(W), atol=1e-5, rtol=0)


def test_krona_starts_at_the_model() -> None:
    W = torch.randn(6, 4)
    assert torch.equal(KronaChange(W, 3, 2)(W), W)


# --- other losses -------------------------------------------------------------------------------------------


def small_batch(mask: torch.Tensor | None = None) -> tuple[Batch, Prompts, torch.Tensor]:
    torch.manual_seed(0)
    x, eps, guess = torch.randn(3, 4, 2, 4, 4).unbind(0)
    batch = Batch(x, eps, torch.tensor([5, 900, 300, 20]), ("a",) * 4, torch.randn(4, 6), 4, mask)
    return batch, Prompts(torch.randn(4, 7, 5), None), guess


def test_the_huber_loss_by_hand() -> None:
    batch, prompts, guess = small_batch()
    for c in (1e-3, 0.1, 100.0):
        config = replace(CONFIG, loss="huber", huber_c=c)
        found = float(loss_of(Guess(guess), batch, prompts, schedule(), config, torch.float32))
        e = (guess - batch.noise).double().numpy()
        assert found == pytest.approx((2 * c * (np.sqrt(e**2 + c**2) - c)).mean(), rel=1e-5)
    squared = float(loss_of(Guess(guess), batch, prompts, schedule(), CONFIG, torch.float32))
    assert found == pytest.approx(squared, rel=1e-3)  # a large c


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_debiased_estimation_by_hand(kind: str) -> None:
    batch, prompts, guess = small_batch()
    config = replace(CONFIG, debiased=True)
    found = float(loss_of(Guess(guess), batch, prompts, schedule(kind), config, torch.float32))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - betas)[[5, 900, 300, 20]]
    snr = alpha / (1 - alpha)
    a, s = np.sqrt(alpha)[:, None, None, None], np.sqrt(1 - alpha)[:, None, None, None]
    X, E, G = (part.double().numpy() for part in (batch.latents, batch.noise, guess))
    # the velocity's error is the noise's over alpha, so both weigh the same error alike
    weights = 1 / np.sqrt(snr) * (1 if kind == "epsilon" else alpha)
    target = E if kind == "epsilon" else a * E - s * X
    assert found == pytest.approx((((G - target) ** 2).mean((1, 2, 3)) * weights).mean(), rel=1e-5)


def test_a_mask_is_the_weights_of_a_mean() -> None:
    mask = torch.zeros(4, 1, 4, 4)
    mask[:, :, :, :2] = 1
    batch, prompts, guess = small_batch(mask)
    found = float(loss_of(Guess(guess), batch, prompts, schedule(), CONFIG, torch.float32))
    e = ((guess - batch.noise) ** 2)[:, :, :, :2].double().numpy()
    assert found == pytest.approx(e.mean(), rel=1e-6)
    flat = Guess(batch.noise + 0.5)
    for each in (mask, torch.rand(4, 1, 4, 4)):
        masked = replace(batch, mask=each)
        assert float(loss_of(flat, masked, prompts, schedule(), CONFIG, torch.float32)) == pytest.approx(0.25)
