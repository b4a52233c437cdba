"""Ctrl-C and the signals that end a program, in the verbs that write on the way."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_data import experiment_data
from PIL import Image
from tiny_pipelines import sd_pipeline

from paramerge.cli.ending import Stopped
from paramerge.cli.main import main
from paramerge.training import loading
from paramerge.training.watching import Watcher


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_pipeline(tmp_path_factory.mktemp("sd"))[0]


@pytest.fixture(scope="module")
def dog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dog")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def training(sd: Path, dog: Path, output: Path) -> list[object]:
    flags = ["--model", sd, "--instance-folder", dog, "--instance-prompt", "a noto dog", "--rank", 2]
    return ["train", *flags, "--device", "cpu", "--output", output, "--steps", 3, "--save-every", 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_training_that_was_stopped_says_how_it_goes_on(
    number: signal.Signals, sd: Path, dog: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = Watcher.after_step

    def stopping(self: Watcher, state: Any, rate: float) -> None:
        original(self, state, rate)
        if state.step == 2:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watcher, "after_step", stopping)
        assert call(*training(sd, dog, tmp_path / "run")) == 128 + number
    shown = capfd.readouterr().err
    assert "stopped after step 1 of 3" in shown
    assert "nothing was written" not in shown
    assert str(tmp_path / "run" / "checkpoints" / "step-00000001.safetensors") in shown
    command = shown.partition("go on with: paramerge ")[2].splitlines()[0]
    assert call(*shlex.split(command), "--json") == 0
    assert json.loads(capfd.readouterr().out)["steps"] == 3


def test_a_stop_before_the_first_step(
    sd: Path, dog: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: object, **named: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(loading, "load_pipeline", stopping)
    assert call(*training(sd, dog, tmp_path / "run")) == 128 + signal.SIGTERM
    shown = capfd.readouterr().err
    assert "before the first step" in shown and "no checkpoint yet" in shown


def test_an_evaluation_that_was_stopped_is_gone_on_with_by_the_same_command(
    sd: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paramerge.training.evaluation import evaluate

    def stopping(*_: object) -> None:
        raise KeyboardInterrupt

    flags = ["--model", sd, "--prompt", "a cat", "-n", 2, "--batch", 1, "--steps", 1, "--device", "cpu"]
    flags += ["--clip", "none", "--lpips", "none", "-o", tmp_path / "a folder"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "measure", stopping)
        assert call("evaluate", *flags) == 130
    shown = capfd.readouterr().err
    assert "stopped while measuring" in shown and "2 pictures kept" in shown
    assert "nothing was written" not in shown
    command = shown.partition("from here: paramerge ")[2].splitlines()[0]
    assert shlex.split(command) == ["evaluate", *map(str, flags)]
    assert call(*shlex.split(command), "--json") == 0


def test_an_experiment_that_was_stopped_names_its_last_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paramerge.training.experiments import run

    kept = tmp_path / "out" / "trained" / "m" / "para-seed0" / "checkpoints" / "step-00000004.safetensors"

    def stopping(plan: Any, measures: Any, output: Path, processes: Any, stage: Any) -> None:
        stage("training")(4, 12)
        kept.parent.mkdir(parents=True)
        kept.touch()
        raise Stopped(signal.SIGHUP)

    monkeypatch.setattr(run, "run_experiment", stopping)
    flags = ["table1", "--model", "m", "--data", experiment_data(tmp_path / "data"), "--budget", "smoke"]
    flags += ["--clip", "none", "--lpips", "none", "--device", "cpu", "-o", tmp_path / "out"]
    assert call("experiment", *flags) == 128 + signal.SIGHUP
    shown = capfd.readouterr().err
    assert "stopped in table1, while training, 4 of 12 done" in shown
    assert str(kept) in shown and "paramerge experiment table1 --model m" in shown


@pytest.mark.slow  # a process that loads torch and trains, twice
def test_a_signal_from_outside(sd: Path, dog: Path, tmp_path: Path) -> None:
    command = [str(part) for part in training(sd, dog, tmp_path / "run")]
    command[command.index("--steps") + 1] = "1000"
    process = subprocess.Popen(
        [sys.executable, "-m", "paramerge.training", *command[1:]], stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "run").glob("checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    shown = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "go on with: paramerge train --config" in shown and "Traceback" not in shown


@pytest.mark.parametrize("place", ["choose_threads", "begin", "stopped_by_signals", "flush"])
@pytest.mark.parametrize("stop", [Stopped(signal.SIGTERM), KeyboardInterrupt()], ids=["SIGTERM", "Ctrl-C"])
def test_a_stop_at_any_moment_is_no_traceback(
    place: str, stop: KeyboardInterrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the work, and after it."""

    def stopped(*_: Any, **__: Any) -> None:
        raise stop

    monkeypatch.setattr(f"paramerge.cli.main.{place}", stopped)
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 128 + getattr(stop, "number", signal.SIGINT)
