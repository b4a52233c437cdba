"""``paramerge experiment`` before anything is done; tests/experiments/test_run.py carries one out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from experiment_data import experiment_data

from paramerge.cli.experiment import NAMES
from paramerge.cli.main import main


def call(*arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["experiment", *(str(argument) for argument in arguments)])
    return int(caught.value.code or 0)


def test_a_dry_run_needs_neither_torch_nor_the_model(tmp_path: Path) -> None:
    """The whole plan and its cost, for people and for programs."""
    data = experiment_data(tmp_path / "data")
    for more in ([], ["--json"]):
        arguments = ["experiment", "table2", "--model", "sdxl.safetensors", "--data", str(data)]
        arguments += ["--budget", "smoke", "--dry-run", *more]
        code = (
            "import sys\n"
            "for name in ('torch', 'diffusers', 'peft', 'transformers'): sys.modules[name] = None\n"
            f"from paramerge.cli.main import main\nmain({arguments!r})\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        if more:
            plan = json.loads(result.stdout)
            assert plan["cost"]["trainings"] == len(plan["trainings"]) == 24
            assert plan["clip"] == "openai/clip-vit-large-patch14"
        else:
            for words in ("24 trainings", "textual-inversion", "claims that will be judged"):
                assert words in result.stdout


def test_all_experiments_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each plan, and what they cost together: an adapter that several need is trained once."""
    arguments = ["all", "--model", "m", "--data", experiment_data(tmp_path / "data"), "--dry-run"]
    arguments += ["--budget", "smoke"]
    assert call(*arguments, "--json") == 0
    plans = json.loads(capfd.readouterr().out)["experiments"]
    assert [plan["experiment"] for plan in plans] == list(NAMES)
    names = {training["name"] for plan in plans for training in plan["trainings"]}
    assert len(names) < sum(plan["cost"]["trainings"] for plan in plans)
    assert call(*arguments) == 0
    shown = capfd.readouterr().out
    assert f"all {len(NAMES)} together: {len(names)} trainings, {len(names)} steps" in shown
    assert f"{sum(plan['cost']['pictures'] for plan in plans):,} pictures" in shown.replace("\n", " ")


def test_all_are_carried_out_in_turn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paramerge.training.experiments import run

    def carried_out(plan: Any, measures: Any, output: Path, *_: object) -> run.Outcome:
        return run.Outcome(plan, (), (), {}, output / plan.experiment.name, {"lora-r4-x": "it diverged"})

    monkeypatch.setattr(run, "run_experiment", carried_out)
    arguments = ["all", "--model", "m", "--data", experiment_data(tmp_path / "data"), "--budget", "smoke"]
    arguments += ["--clip", "none", "--lpips", "none", "--device", "cpu", "-o", tmp_path / "out"]
    assert call(*arguments, "--json") == 0
    found = json.loads(capfd.readouterr().out)["experiments"]
    assert [Path(each["output"]).name for each in found] == list(NAMES)
    assert found[0]["diverged"] == {"lora-r4-x": "it diverged"}
    assert call(*arguments) == 0
    shown = capfd.readouterr().out
    assert shown.count("it diverged; left out") == len(NAMES)
    assert call("table1", *arguments[1:], "--json") == 0
    assert json.loads(capfd.readouterr().out)["output"].endswith("table1")


def test_data_that_is_too_small_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = experiment_data(tmp_path / "data")
    assert call("gamma", "--model", "m", "--data", data, "--budget", "paper", "--dry-run") == 2
    assert "8 subjects" in capfd.readouterr().err
