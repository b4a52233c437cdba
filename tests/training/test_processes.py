"""Two processes of one training, forked: from unequal starts they train what one process does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from training_runs import SMOOTH, settings

from paramerge.training import loop
from paramerge.training.loop import train
from paramerge.training.state import latest_checkpoint


def both(act: Callable[[int], None], folder: Path) -> list[str]:
    """Run ``act(rank)`` in two processes that see each other by gloo; what each of them raised, or ''."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()  # a new interpreter would spend seconds on its imports
        if child == 0:
            said = folder / f"said-{rank}"
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
                AcceleratorState._reset_state(reset_partial_state=True)  # the parent's view of the processes
                act(rank)
                said.write_text("")
            except BaseException:
                said.write_text(traceback.format_exc())
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [(folder / f"said-{rank}").read_text() for rank in range(2)]


def otherwise(pipeline: Any, config: Any) -> Any:
    """A start that spans other directions, as another processor's eigenvectors of equal energy do."""
    trained = attach(pipeline, config)
    with torch.no_grad():
        for value in trained.parameters.values():
            value.copy_(torch.linalg.qr(torch.randn_like(value))[0])
    return trained


attach = loop.attach


def parameters(output: Path) -> dict[str, torch.Tensor]:
    newest = latest_checkpoint(output / "checkpoints")
    assert newest is not None
    return {key: value for key, value in load_file(newest).items() if key.startswith("parameter.")}


def test_unequal_starts_train_what_one_process_does(sd: Path, dog: Path, tmp_path: Path) -> None:
    config = settings(sd, dog, tmp_path / "two", steps=2, subset="ex-ca-hl", **SMOOTH)

    def act(rank: int) -> None:
        if rank == 1:
            loop.attach = otherwise
        train(config)

    assert both(act, tmp_path) == ["", ""]
    one = train(replace(config, output=tmp_path / "one", batch_size=2))
    rows = [json.loads(line)["loss"] for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(rows, one.losses, rtol=1e-5)
    found, want = parameters(tmp_path / "two"), parameters(tmp_path / "one")
    for key, value in want.items():
        assert float((found[key] - value).norm() / value.norm()) < 2e-4, key


def test_only_the_first_process_has_the_checkpoint(sd: Path, dog: Path, tmp_path: Path) -> None:
    """As on two machines with disks of their own: the other one is given what was loaded."""
    config = settings(sd, dog, tmp_path / "two", steps=1, subset="ex-ca-hl", ema_decay=0.5)
    one = replace(config, output=tmp_path / "one", batch_size=2)
    train(one)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one = replace(one, steps=3)
    whole = train(one, resume=True)

    def act(rank: int) -> None:
        if rank == 1:
            loop.latest_checkpoint = lambda folder: None
        train(replace(config, steps=3), resume=True)

    assert both(act, tmp_path) == ["", ""]
    rows = [json.loads(line)["loss"] for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(rows, whole.losses, rtol=1e-4)


def test_other_pictures_on_another_process_are_refused(sd: Path, dog: Path, tmp_path: Path) -> None:
    shutil.copytree(dog, tmp_path / "other")
    (tmp_path / "other" / "a.png").unlink()
    config = settings(sd, dog, tmp_path / "two", steps=1, subset="ex-ca-hl")

    def act(rank: int) -> None:
        train(replace(config, instance_folder=tmp_path / "other") if rank else config)

    assert all("do not have the same data" in said for said in both(act, tmp_path))
