"""What goes wrong in a training: pictures, numbers, the disk; the last checkpoint stays."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import settings

from paramerge.errors import FileFormatError, NonFiniteError, OutputError, UsageError
from paramerge.files import writer
from paramerge.training import loop
from paramerge.training.loop import train
from paramerge.training.state import latest_checkpoint


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
