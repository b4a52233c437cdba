"""Optimisers: each learns, is resumed to the bit, and refuses what it does not go together with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_runs import settings

from paramerge.errors import CheckpointError, UsageError
from paramerge.training import launching
from paramerge.training.config import TrainConfig
from paramerge.training.launching import require_optimiser
from paramerge.training.loop import _optimizer, train
from paramerge.training.methods.trained import Trained
from paramerge.training.moments import blank_moments, moments_of
from paramerge.training.optimisers import OPTIMISERS
from paramerge.training.state import TrainingState, latest_checkpoint, load_checkpoint, save_checkpoint
from paramerge.training.watching import averaged

IDENTITY = {"settings": "a", "data": "b", "whole_batch": 1}


@pytest.fixture(params=OPTIMISERS)
def optimiser(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(OPTIMISERS[request.param].module)
    return str(request.param)


def config_of(optimiser: str, **more: Any) -> TrainConfig:
    return settings(Path("m"), Path("p"), Path("o"), optimiser=optimiser, **more)


def state_of(config: TrainConfig, seed: int = 0) -> TrainingState:
    """A large matrix (which 8 bits are for), a small one, and one that nothing reaches."""
    torch.manual_seed(seed)
    shapes = {"unet.a": (64, 80), "unet.b": (3,), "text_encoder.c": (4, 4), "unet.unreached": (2,)}
    parameters = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    optimizer = _optimizer(Trained(parameters, lambda folder, metadata: []), config)
    return TrainingState(parameters, optimizer, moving=config.optimiser_record.moving)


def descend(state: TrainingState, steps: int) -> float:
    """Steps towards 0; the last loss."""
    loss = torch.zeros(())
    for _ in range(steps):
        reached = [p for name, p in state.parameters.items() if name != "unet.unreached"]
        loss = torch.stack([p.square().sum() for p in reached]).sum()
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.losses.append(float(loss.detach()))
    return float(loss.detach())


def test_every_optimiser_goes_down(optimiser: str) -> None:
    config = config_of(optimiser, learning_rate=1.0 if optimiser == "prodigy" else 0.05)
    state = state_of(config)
    first = descend(state, 1)
    assert descend(state, 60) < 0.8 * first
    assert set(moments_of(state.optimizer, state.parameters)) == set(state.parameters) - {"unet.unreached"}


def test_a_state_that_was_saved_goes_on_to_the_bit(optimiser: str, tmp_path: Path) -> None:
    config = config_of(optimiser)
    straight = state_of(config)
    descend(straight, 3)
    path = save_checkpoint(straight, tmp_path, IDENTITY, 0)
    resumed = state_of(config)
    load_checkpoint(resumed, path, IDENTITY)
    for state in (straight, resumed):
        descend(state, 4)
    assert resumed.losses == straight.losses
    for name, value in straight.parameters.items():
        assert torch.equal(value, resumed.parameters[name]), name
    with averaged(straight), averaged(resumed):
        for name, value in straight.parameters.items():
            assert torch.equal(value, resumed.parameters[name]), name


def test_looking_for_the_form_of_moments_changes_nothing(optimiser: str) -> None:
    state = state_of(config_of(optimiser))
    before = [p.detach().clone() for p in state.parameters.values()]
    assert blank_moments(state.optimizer, state.parameters["unet.a"])
    assert not any(state.optimizer.state.values())
    assert all(torch.equal(a, b) for a, b in zip(before, state.parameters.values(), strict=True))


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    for other in ("adafactor", "schedule-free", "prodigy"):
        state = state_of(config_of("adamw"))
        descend(state, 2)
        path = save_checkpoint(state, tmp_path / other, IDENTITY, 0)
        fresh = state_of(config_of(other))
        with pytest.raises(CheckpointError):
            load_checkpoint(fresh, path, IDENTITY)
        assert fresh.step == 0


def test_numbers_that_no_optimiser_had_are_refused(tmp_path: Path) -> None:
    state = state_of(config_of("prodigy"))
    descend(state, 2)
    path = save_checkpoint(state, tmp_path, IDENTITY, 0)
    whole = path.read_bytes()
    changes = (
        (rb"\"d_max\"", rb"\"lr_ma\""),
        (rb"\"step\": 2}", rb"\"step\": 9}"),
        (rb"\"k\": 2", rb"\"k\": N"),
    )
    for old, new in changes:
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(CheckpointError):
            load_checkpoint(state_of(config_of("prodigy")), path, IDENTITY)


def test_the_average_of_schedule_free_is_what_is_saved() -> None:
    state = state_of(config_of("schedule-free", learning_rate=0.1))
    descend(state, 20)
    training = {name: p.detach().clone() for name, p in state.parameters.items()}
    with averaged(state):
        inside = state.parameters["unet.a"].detach().clone()
        z = state.optimizer.state[state.parameters["unet.a"]]["z"]
        # y = (1 - beta) z + beta x
        torch.testing.assert_close(0.1 * z + 0.9 * inside, training["unet.a"])
    assert not torch.equal(inside, training["unet.a"])
    for name, value in training.items():
        assert torch.equal(value, state.parameters[name])
    descend(state, 1)  # it is in training again


def test_the_text_encoders_have_a_rate_of_their_own() -> None:
    config = config_of("adamw", train_text_encoder=True, learning_rate=1e-2, text_encoder_rate=1e-3)
    unet, text = state_of(config).optimizer.param_groups
    assert (unet["lr"], text["lr"]) == (1e-2, 1e-3)
    assert [len(group["params"]) for group in (unet, text)] == [3, 1]
    assert len(state_of(replace(config, text_encoder_rate=None)).optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"optimiser": "schedule-free", "ema_decay": 0.9}, "ema_decay"),
        ({"optimiser": "schedule-free", "lr_scheduler": "cosine"}, "lr_scheduler"),
        (
            {"optimiser": "prodigy", "text_encoder_rate": 1e-4, "train_text_encoder": True},
            "text_encoder_rate",
        ),
        ({"text_encoder_rate": 1e-4}, "text_encoder_rate"),
        ({"optimiser": "sgd"}, "optimiser"),
    ],
)
def test_what_does_not_go_together(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(Path("m"), Path("p"), Path("o"), **wrong)
    assert caught.value.where == name


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        require_optimiser(config_of("prodigy"))
    assert caught.value.hint == "pip install prodigyopt"


def test_prodigy_finds_its_rate() -> None:
    config = settings(Path("m"), Path("p"), Path("o"), optimiser="prodigy", learning_rate=None)
    assert config.rate == 1.0
    assert replace(config, optimiser="adafactor").rate == 1e-3


@pytest.mark.parametrize(
    "optimiser",
    [
        "schedule-free",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("prodigy", "adamw-8bit", "adafactor")),
    ],
)
def test_a_training_that_was_stopped_ends_in_the_same_bytes(
    optimiser: str, sd: Path, dog: Path, tmp_path: Path
) -> None:
    pytest.importorskip(OPTIMISERS[optimiser].module)
    more: dict[str, Any] = {"optimiser": optimiser, "steps": 3, "save_every": 1, "learning_rate": None}
    more |= {"train_text_encoder": True, "init": "orthonormal"}
    if optimiser != "prodigy":
        more |= {"learning_rate": 1e-2, "text_encoder_rate": 1e-3}
    config = settings(sd, dog, tmp_path / "whole", **more)
    whole = train(config)

    def interrupt(done: int, total: int, loss: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    part = replace(config, output=tmp_path / "part")
    with pytest.raises(KeyboardInterrupt):
        train(part, report=interrupt)
    resumed = train(part, resume=True)
    assert resumed.losses == whole.losses
    assert resumed.adapter[0].read_bytes() == whole.adapter[0].read_bytes()
    if optimiser == "adamw-8bit":
        newest = latest_checkpoint(tmp_path / "whole" / "checkpoints")
        assert newest is not None
        assert any(key.startswith("optimizer.state1.") for key in load_file(newest))


@pytest.mark.slow  # a process that loads torch, for each
def test_kill_9_and_resume(optimiser: str, sd: Path, dog: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"optimiser": optimiser, "steps": 40, "save_every": 2, "learning_rate": 1e-2}
    whole = train(settings(sd, dog, tmp_path / "whole", **more))
    output = tmp_path / "part"
    flags = ["--model", sd, "--instance-folder", dog, "--instance-prompt", "a noto dog", "--steps", 40]
    flags += ["--rank", 2, "--device", "cpu", "--learning-rate", 1e-2, "--save-every", 2]
    flags += ["--optimiser", optimiser, "--output", output]
    command = [sys.executable, "-m", "paramerge.training", *map(str, flags)]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (output / "checkpoints").is_dir() or len(list((output / "checkpoints").iterdir())) < 2:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    subprocess.run([*command, "--resume"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (output / "adapter.safetensors").read_bytes() == whole.adapter[0].read_bytes()
