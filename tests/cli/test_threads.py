"""How many threads compute: few for what is small, the user's number where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paramerge import shipped
from paramerge.cli.threads import SMALL_MODEL, choose_threads, threads_for_model


def run(script: str, **environment: str) -> str:
    own = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=own | environment
    )
    return done.stdout.strip()


def test_numpy_has_one_thread_but_for_large_matrices_and_the_users_word() -> None:
    for verb in ("bake", "merge", "resize", "compare", "convert", "generate", "train"):
        environment: dict[str, str] = {}
        choose_threads(verb, environment)
        assert environment["OPENBLAS_NUM_THREADS"] == "1"
        assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
        assert "OMP_NUM_THREADS" not in environment
    environment = {}
    choose_threads("extract", environment)
    assert "OPENBLAS_NUM_THREADS" not in environment
    environment = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE", "BLIS_NUM_THREADS": "2"}
    choose_threads("bake", environment)
    assert environment["OPENBLAS_NUM_THREADS"] == "3"
    assert (environment["OMP_WAIT_POLICY"], environment["BLIS_NUM_THREADS"]) == ("ACTIVE", "2")


def test_the_command_line_loads_no_numpy_before_it_chose() -> None:
    assert run("import sys, paramerge.cli.main; print('numpy' in sys.modules)") == "False"


SCRIPT = """
from pathlib import Path
from paramerge import shipped
from paramerge.cli.threads import threads_for_model
threads_for_model(shipped.model())
import torch
print(torch.get_num_threads())
"""


def test_torch_has_one_thread_for_the_shipped_model() -> None:
    assert run(SCRIPT) == "1"
    assert run(SCRIPT, OMP_NUM_THREADS="2") == "2"


def test_large_models_and_what_is_not_here_keep_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    large = tmp_path / "large.safetensors"
    with open(large, "wb") as file:
        file.truncate(SMALL_MODEL)  # a hole: no room is taken
    for places in ((large,), (tmp_path,), (shipped.model(), large), (Path("openai/clip"),)):
        threads_for_model(*places)
    assert asked == []
    threads_for_model(shipped.model(), shipped.contrastive())
    assert asked == [1]
