"""``paramerge experiment`` before anything is done; tests/experiments/test_run.py carries one out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_data import experiment_data

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
            for words in ("24 trainings", "textual-inversion", "claims that will be judged", "for tuning"):
                assert words in result.stdout


def test_data_that_is_too_small_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = experiment_data(tmp_path / "data")
    assert call("gamma", "--model", "m", "--data", data, "--budget", "paper", "--dry-run") == 2
    assert "8 subjects" in capfd.readouterr().err
