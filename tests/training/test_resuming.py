"""The same numbers however a training is cut: stopped and resumed, accumulated, shared by processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from training_runs import SMOOTH, settings

from paramerge.errors import CheckpointError, FileFormatError, UsageError
from paramerge.training.chance import permutation
from paramerge.training.loop import train
from paramerge.training.state import latest_checkpoint


@pytest.mark.parametrize(
    "more",
    [
        {
            "method": "para",
            "init": "orthonormal",
            "random_flip": True,
            "ema_decay": 0.5,
            "train_text_encoder": True,
        },
        {"method": "para", "init": "gate", "gate_steps": 3, "lr_scheduler": "cosine", "accumulation": 2},
        {"method": "lora", "min_snr_gamma": 5.0, "noise_offset": 0.1, "gradient_checkpointing": True},
    ],
    ids=["para-ema-text", "para-gate-cosine", "lora"],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    more: dict[str, Any], sd: Path, dog: Path, tmp_path: Path
) -> None:
    """Stopped at a random step by an error, resumed from the last checkpoint: the same bytes."""
    stop = int(np.random.default_rng().integers(2, 6))
    config = settings(sd, dog, tmp_path / "whole", steps=6, save_every=1, **more)
    whole = train(config)
    part = replace(config, output=tmp_path / "part")

    def interrupt(done: int, total: int, loss: float) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(part, report=interrupt)
    resumed = train(part, resume=True)
    assert resumed.losses == whole.losses, f"stopped at {stop}"
    assert resumed.adapter[0].read_bytes() == whole.adapter[0].read_bytes()
    assert (tmp_path / "part" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_what_cannot_be_resumed(sd: Path, dog: Path, tmp_path: Path) -> None:
    config = settings(sd, dog, tmp_path / "run", steps=1)
    train(config)
    with pytest.raises(UsageError, match="already"):
        train(config)
    with pytest.raises(CheckpointError, match="settings"):
        train(replace(config, rank=3, steps=2), resume=True)
    with pytest.raises(CheckpointError, match="whole batch"):
        train(replace(config, batch_size=3, steps=2), resume=True)
    other = tmp_path / "other"
    shutil.copytree(dog, other)
    (other / "a.png").unlink()
    with pytest.raises(CheckpointError, match="data"):
        train(replace(config, instance_folder=other, steps=2), resume=True)
    assert len(train(replace(config, steps=2), resume=True).losses) == 2
    newest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(FileFormatError):
        train(replace(config, steps=3), resume=True)


def test_accumulated_batches_are_one_batch(sd: Path, dog: Path, tmp_path: Path) -> None:
    once = train(settings(sd, dog, tmp_path / "a", batch_size=4, **SMOOTH))
    twice = train(settings(sd, dog, tmp_path / "b", batch_size=2, accumulation=2, **SMOOTH))
    np.testing.assert_allclose(twice.losses, once.losses, rtol=1e-5)


@pytest.mark.slow  # three processes that each load torch; some 25 seconds of CPU
def test_two_processes_are_one_with_the_same_whole_batch(sd: Path, dog: Path, tmp_path: Path) -> None:
    """Equal to rounding, as sums are taken in another order."""
    flags = ["--model", sd, "--instance-folder", dog, "--instance-prompt", "a noto dog",
             "--steps", 3, "--rank", 2, "--device", "cpu", "--output", tmp_path / "two"]  # fmt: skip
    flags += [text for key, value in SMOOTH.items() for text in (f"--{key.replace('_', '-')}", value)]
    # what accelerate's launcher starts for many GPUs; for CPUs that one wants MPI
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "paramerge.training"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *map(str, flags)], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = train(settings(sd, dog, tmp_path / "one", steps=3, batch_size=2, **SMOOTH))
    rows = [json.loads(line)["loss"] for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(rows, one.losses, rtol=1e-5)
    found = load_file(latest_checkpoint(tmp_path / "two" / "checkpoints"))  # type: ignore[arg-type]
    want = load_file(latest_checkpoint(tmp_path / "one" / "checkpoints"))  # type: ignore[arg-type]
    assert found.keys() == want.keys()
    for key, value in want.items():
        if key.startswith("parameter."):
            assert float((found[key] - value).norm() / value.norm()) < 2e-4, key


def test_the_order_of_pictures() -> None:
    order = [permutation(5, position, 3, "order") for position in range(15)]
    for epoch in range(3):
        assert sorted(order[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert order[:5] != order[5:10]
    maker: Callable[..., int] = permutation
    assert [maker(5, position, 4, "order") for position in range(15)] != order
