"""The trainer's configuration, and ``paramerge train``."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from training_runs import settings

from paramerge.cli.main import main
from paramerge.errors import UsageError
from paramerge.training.config import TrainConfig
from paramerge.training.config_file import config_from_toml, config_to_toml


def test_toml_and_flags_are_the_same(tmp_path: Path) -> None:
    config = TrainConfig(
        model=Path("m"),
        instance_folder=Path("p"),
        instance_prompt='a "photo" of é',
        output=Path("o"),
        gamma=0.025,
        random_flip=True,
        krona_factors=(8, 2),
        validation_prompts=("a", "b"),
    )
    file = tmp_path / "c.toml"
    file.write_text(config_to_toml(config))
    assert config_from_toml(file) == config
    assert config_from_toml(file, rank=7).rank == 7
    file.write_text("rnak = 3")
    with pytest.raises(UsageError, match="no such settings"):
        config_from_toml(file)
    file.write_text("rank = 3")
    with pytest.raises(UsageError, match="missing"):
        config_from_toml(file)
    file.write_text(config_to_toml(config).replace("rank = 4", 'rank = "4"'))
    with pytest.raises(UsageError, match="out of range"):
        config_from_toml(file)
    file.write_text("= =")
    with pytest.raises(UsageError, match="not valid TOML"):
        config_from_toml(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "magic"},
        {"rank": 0},
        {"steps": 0},
        {"ema_decay": 1.0},
        {"resolution": 30},
        {"learning_rate": -1.0},
        {"noise_offset": float("nan")},
        {"class_folder": Path("x")},
        {"init": "gate", "gate_steps": 10},
        {"method": "textual-inversion"},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        settings(Path("m"), Path("p"), Path("o"), **wrong)


def test_the_command(sd: Path, dog: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text('steps = 9\nrank = 2\ninstance_prompt = "a noto dog"\ndevice = "cpu"\n')
    flags = [
        "--model",
        sd,
        "--instance-folder",
        dog,
        "--output",
        tmp_path / "o",
        "--config",
        toml,
        "--steps",
        2,
    ]
    with pytest.raises(SystemExit) as caught:
        main(["train", *map(str, flags), "--json"])
    assert caught.value.code == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["steps"] == 2
    assert Path(facts["adapter"][0]).is_file()
    with pytest.raises(SystemExit) as caught:
        main(["inspect", facts["adapter"][0]])
    assert "a noto dog" in capfd.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["train", *map(str, flags)])
    assert caught.value.code == 2
    assert "already" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--min-snr-gamma" in capfd.readouterr().out


def test_a_wrong_flag_is_no_internal_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the command runs by itself, as accelerate starts it."""
    monkeypatch.setattr("sys.argv", ["training", "--bogus"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("paramerge.training", run_name="__main__")
    assert caught.value.code == 2
    assert "there is no such option" in capfd.readouterr().err
