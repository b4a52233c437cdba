"""Where a training runs: trackers, and what accelerate's launcher starts that is not what it seems.

The environments are those that accelerate's own launcher makes from its flags.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from PIL import Image

from paramerge.cli.main import main
from paramerge.errors import UsageError
from paramerge.training import launching
from paramerge.training.config import TrainConfig
from paramerge.training.launching import accelerator_for
from paramerge.training.loop import train

CONFIG = TrainConfig(
    model=Path("model"),
    instance_folder=Path("pictures"),
    instance_prompt="a noto dog",
    output=Path("output"),
    rank=2,
    device="cpu",
)


@pytest.fixture
def dog(tmp_path: Path) -> Path:
    folder = tmp_path / "dog"
    folder.mkdir()
    Image.new("RGB", (64, 64), (200, 40, 40)).save(folder / "a.png")
    return folder


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps one view of the processes for good; here each test has its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not PartialState._shared_state


def launch_environment(*flags: str) -> dict[str, str]:
    """What ``accelerate launch`` sets for the process that it starts."""
    arguments = launch_command_parser().parse_args([*flags, "--mixed_precision", "no", "-m", "script"])
    arguments, _, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""  # what the launcher has without a file
        return dict(prepare_deepspeed_cmd_env(arguments)[1])
    if arguments.use_fsdp:
        return dict(prepare_multi_gpu_env(arguments))
    return dict(prepare_simple_launcher_cmd_env(arguments)[1])


def within(patch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        if os.environ.get(name) != value:
            patch.setenv(name, value)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (("--use_deepspeed", "--num_processes", "2", "--zero_stage", "2"), "DEEPSPEED"),
        (("--use_fsdp", "--num_processes", "2"), "FSDP"),
    ],
)
def test_models_cut_up_are_refused_before_anything_is_set_up(
    flags: tuple[str, ...], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    within(monkeypatch, launch_environment(*flags))
    with pytest.raises(UsageError, match="cut up over several devices") as caught:
        train(CONFIG)
    assert caught.value.found == found
    assert "MULTI_GPU" in str(caught.value)
    assert not PartialState._shared_state  # no process group was waited for


def test_accelerates_launcher_for_cpus_starts_one_process_and_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    within(monkeypatch, launch_environment("--cpu", "--num_processes", "2"))
    with pytest.raises(UsageError, match="started one") as caught:
        accelerator_for(CONFIG)
    assert "torchrun" in str(caught.value)


def test_one_process_of_the_launcher_is_none_the_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    within(monkeypatch, launch_environment("--cpu", "--num_processes", "1"))
    assert accelerator_for(CONFIG).num_processes == 1


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_do_not_see_each_other_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MPI starts them on GPUs, say, where accelerate goes by LOCAL_RANK and takes each as alone."""
    alone = SimpleNamespace(num_processes=1, distributed_type=DistributedType.NO, device=torch.device("cpu"))
    monkeypatch.setattr("accelerate.Accelerator", lambda **settings: alone)
    assert accelerator_for(CONFIG) is alone
    monkeypatch.setenv(name, "2")
    with pytest.raises(UsageError, match="do not see each other") as caught:
        accelerator_for(CONFIG)
    assert (caught.value.expected, caught.value.found) == ("2 processes", "1")
    alone.num_processes = 2
    assert accelerator_for(CONFIG) is alone


@pytest.mark.slow  # a process that loads torch, started by accelerate's launcher, another process
def test_the_launcher_itself(sd: Path, dog: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["-m", "paramerge.training", "--model", str(sd), "--instance-folder", str(dog)]
    command += ["--instance-prompt", "a noto dog", "--device", "cpu", "--output", str(tmp_path / "o")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode != 0
    assert "started one" in done.stderr
    assert not (tmp_path / "o").exists()


# --- devices and precisions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["banana", "cuda:77", "meta"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match="device") as caught:
        accelerator_for(replace(CONFIG, device=device))
    assert str(caught.value.found) == device


def test_a_device_that_accelerate_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where accelerate finds a CPU alone, and a GPU was asked for."""
    monkeypatch.setattr(launching, "_choose_device", lambda name: None)
    with pytest.raises(UsageError, match="device that was asked for") as caught:
        accelerator_for(replace(CONFIG, device="mps"))
    assert "mps" in str(caught.value)


def test_precisions_one_after_the_other_in_one_process() -> None:
    found = [accelerator_for(replace(CONFIG, mixed_precision=kind)) for kind in ("no", "bf16", "no")]
    assert [accelerator.mixed_precision for accelerator in found[-1:]] == ["no"]


# --- trackers -----------------------------------------------------------------------------------------------


def test_tensorboard_has_the_losses(sd: Path, dog: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    result = train(
        replace(CONFIG, model=sd, instance_folder=dog, output=output, tracker="tensorboard", steps=3)
    )
    events = EventAccumulator(str(output / "paramerge")).Reload()
    series = events.Scalars("loss")
    assert [entry.step for entry in series] == [1, 2, 3]
    assert [entry.value for entry in series] == pytest.approx(result.losses)  # stored as float32
    assert [entry.value for entry in events.Scalars("rate")] == pytest.approx([CONFIG.rate] * 3)


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error with the command to install it, before anything is made; from Python and the command line."""
    original = launching.find_spec
    hidden = {"tensorboard", "tensorboardX", "wandb"}
    monkeypatch.setattr(launching, "find_spec", lambda name: None if name in hidden else original(name))
    config = replace(CONFIG, tracker=tracker, output=tmp_path / "o")
    with pytest.raises(UsageError, match=f"pip install {tracker}"):
        train(config)
    flags = {"--model": "m", "--instance-folder": "p", "--instance-prompt": "x", "--output": tmp_path / "o"}
    with pytest.raises(SystemExit) as caught:
        main(["train", "--tracker", tracker, *(str(text) for pair in flags.items() for text in pair)])
    assert caught.value.code == 2
    assert f"pip install {tracker}" in capfd.readouterr().err
    assert not (tmp_path / "o").exists()


def test_either_package_of_tensorboard_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "find_spec", lambda name: object() if name == "tensorboardX" else None)
    launching.require_tracker("tensorboard")
    launching.require_tracker("none")
    with pytest.raises(UsageError, match="wandb"):
        launching.require_tracker("wandb")
