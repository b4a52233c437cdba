"""What goes wrong in a training: pictures, numbers, the disk; the last checkpoint stays."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from training_runs import settings

from paramerge.errors import FileFormatError, NonFiniteError, OutputError, UsageError
from paramerge.files import writer
from paramerge.training import loop
from paramerge.training.loop import train
from paramerge.training.state import TrainingState, latest_checkpoint, save_checkpoint
from paramerge.training.watching import Watcher


def test_bad_pictures_and_empty_folders(sd: Path, dog: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        train(settings(sd, tmp_path / "nowhere", tmp_path / "o"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no picture"):
        train(settings(sd, tmp_path / "empty", tmp_path / "o"))
    bad = tmp_path / "bad"
    shutil.copytree(dog, bad)
    (bad / "b.jpg").write_bytes((bad / "b.jpg").read_bytes()[:200])
    with pytest.raises(FileFormatError, match="cannot be read") as caught:
        train(settings(sd, bad, tmp_path / "o"))
    assert "b.jpg" in str(caught.value)


def test_a_loss_that_is_nan_keeps_the_last_checkpoint(sd: Path, dog: Path, tmp_path: Path) -> None:
    original = loop.loss_of
    calls = []

    def broken(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 3 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "loss_of", broken)
        with pytest.raises(NonFiniteError, match="step 3"):
            train(settings(sd, dog, tmp_path, save_every=1))
    assert (
        latest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000002.safetensors"
    )
    assert not (tmp_path / "adapter.safetensors").exists()
    assert len(train(settings(sd, dog, tmp_path, save_every=1), resume=True).losses) == 4


@pytest.mark.parametrize("clipped", [1.0, 0.0])
def test_a_gradient_that_is_nan_is_never_saved(clipped: float, sd: Path, dog: Path, tmp_path: Path) -> None:
    """Though the loss of its step is a number, as where a square root's gradient at 0 is infinite."""
    original = loop._average_gradients
    calls = []

    def broken(trained: Any, accelerator: Any) -> None:
        original(trained, accelerator)
        calls.append(1)
        if len(calls) == 3:
            next(p.grad for p in trained.parameters.values() if p.grad is not None)[0] = float("nan")

    config = settings(
        sd, dog, tmp_path, save_every=1, checkpoints_limit=1, subset="ex-ca-hl", max_grad_norm=clipped
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_average_gradients", broken)
        with pytest.raises(NonFiniteError, match="gradient is not finite") as caught:
            train(config)
    assert caught.value.where == "step 3"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000001.safetensors",  # one beyond the limit
        "step-00000002.safetensors",
    ]
    assert not (tmp_path / "adapter.safetensors").exists()
    assert len(train(config, resume=True).losses) == 4


def test_what_is_not_finite_is_never_written(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    state = TrainingState({"p": parameter}, torch.optim.AdamW([parameter]), {"p": torch.ones(2)}, step=1)
    state.average["p"][1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"average\.p"):
        save_checkpoint(state, tmp_path, {}, 1)
    assert not list(tmp_path.iterdir())


# --- validation ---------------------------------------------------------------------------------------------

DRAWS: dict[str, Any] = {
    "validation_prompts": ("a noto dog",),
    "validation_steps": 1,
    "validation_seeds": (0,),
}


FAULTS = (NonFiniteError("the picture is not finite"), torch.OutOfMemoryError("memory"), OSError(28, "full"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.filterwarnings("ignore:step 2")
def test_a_validation_that_fails_warns_and_ends_nothing(
    fault: Exception, sd: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[bool] = []

    def broken(*arguments: Any, **more: Any) -> Any:
        saved.append(any((tmp_path / "checkpoints").glob("step-00000002.safetensors")))
        raise fault

    monkeypatch.setattr("paramerge.generation.sampling.draw", broken)
    config = settings(sd, dog, tmp_path, subset="ex-ca-hl", validation_every=2, **DRAWS)
    with pytest.warns(UserWarning, match="step 4: the pictures of validation failed"):
        result = train(config)
    assert saved == [True, True]  # the first checkpoint was there before anything was drawn
    assert len(result.losses) == 4
    assert result.adapter[0].is_file()


def test_pictures_that_a_stop_prevented_are_drawn_by_the_run_that_goes_on(
    sd: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the checkpoint, before its pictures: in the middle of a run, and at its end."""
    more = {"subset": "ex-ca-hl", "steps": 2, "validation_every": 1, **DRAWS}
    train(settings(sd, dog, tmp_path / "whole", **more))
    part = settings(sd, dog, tmp_path / "part", **more)
    drawn = Watcher._draw
    for stop in (1, 2):

        def draw(watcher: Watcher, state: TrainingState, stop: int = stop) -> None:
            if state.step == stop:
                raise KeyboardInterrupt
            drawn(watcher, state)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Watcher, "_draw", draw)
            train(part, resume=stop > 1)
    train(part, resume=True)
    for name in ("step-00000001.png", "step-00000002.png"):
        whole, found = (tmp_path / run / "samples" / name for run in ("whole", "part"))
        assert found.read_bytes() == whole.read_bytes()


def test_a_plot_or_a_log_that_fails_ends_nothing(
    sd: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(losses: Any) -> bytes:
        raise MemoryError

    monkeypatch.setattr("paramerge.training.watching.loss_plot", broken)
    with pytest.warns(UserWarning, match="the plot of the loss failed"):
        assert train(settings(sd, dog, tmp_path, steps=1, subset="ex-ca-hl")).adapter[0].is_file()


def test_validation_decodes_in_float32_under_half_precision(
    sd: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The autoencoder of SDXL overflows in half precision, which autocast would give it."""
    seen: list[tuple[torch.dtype, bool]] = []
    original = AutoencoderKL.decode

    def decode(self: Any, latents: torch.Tensor, *more: Any, **named: Any) -> Any:
        seen.append((latents.dtype, torch.is_autocast_enabled("cpu")))
        return original(self, latents, *more, **named)

    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    config = settings(sd, dog, tmp_path, steps=1, mixed_precision="bf16", subset="ex-ca-hl", **DRAWS)
    train(config)
    assert seen == [(torch.float32, False)]
    assert (tmp_path / "samples" / "step-00000001.png").is_file()


def test_a_full_disk_keeps_the_last_checkpoint(sd: Path, dog: Path, tmp_path: Path) -> None:
    original = writer._write_all

    def full(descriptor: int, data: Any) -> None:
        if b'step\\": 3' in bytes(data[:20000]):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_write_all", full)
        with pytest.raises(OutputError, match="disk is full"):
            train(settings(sd, dog, tmp_path, save_every=1, checkpoints_limit=1))
    assert (
        latest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000002.safetensors"
    )
    whole = train(settings(sd, dog, tmp_path / "whole"))
    assert train(settings(sd, dog, tmp_path, checkpoints_limit=1), resume=True).losses == whole.losses
