"""The training loop: exact resumption, budgets, divergence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from paramerge.errors import CheckpointError, FileFormatError, NonFiniteError
from paramerge.training.chance import generator as torch_generator
from paramerge.training.tiny.loop import Budget, train


class Line:
    """Fit a linear map; each batch depends on the step alone."""

    name = "line"

    def __init__(self, identity: str = "line", broken_at: int | None = None) -> None:
        self.model: nn.Module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        with torch.no_grad():
            for i, parameter in enumerate(self.model.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch_generator("start", i)))
        self.identity = identity
        self._broken_at = broken_at

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        x = torch.randn(16, 3, generator=torch_generator("batch", step))
        error = (model(x)[:, 0] - x.sum(dim=1)).square().mean()
        return error / 0 if step == self._broken_at else error


def silent(name: str, done: int, total: int, loss: float) -> None:
    """Report to no one."""


def test_a_resumed_run_equals_one_without_a_stop(tmp_path: Path) -> None:
    straight = train(Line(), Budget(30), tmp_path, silent)
    train(Line(), Budget(11), tmp_path, silent)
    resumed = train(Line(), Budget(30), tmp_path, silent, resume=True)
    for one, other in ((straight.model, resumed.model), (straight.average, resumed.average)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
    assert resumed.step == 30


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    train(Line(), Budget(5), tmp_path, silent)
    assert train(Line(), Budget(3), tmp_path, silent).step == 3


def test_training_lowers_the_loss_and_the_average_follows(tmp_path: Path) -> None:
    state = train(Line(), Budget(400, learning_rate=1e-2, decay=0.9), tmp_path, silent)
    assert state.curve[-1][1] < 0.1 * state.curve[0][1]
    assert [step for step, _ in state.curve] == list(range(25, 401, 25))
    held_out = Line()
    trained, average = (held_out.loss(model, 10**6).item() for model in (state.model, state.average))
    assert average < 2 * trained + 0.01


def test_a_spent_budget_stops_at_once_and_is_saved(tmp_path: Path) -> None:
    state = train(Line(), Budget(100, seconds=0.0), tmp_path, silent)
    assert state.step == 0
    assert (tmp_path / "line.safetensors").is_file()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(Line("seed=0"), Budget(2), tmp_path, silent)
    with pytest.raises(CheckpointError, match="another run") as caught:
        train(Line("seed=1"), Budget(4), tmp_path, silent, resume=True)
    assert caught.value.found == "seed=0"


def test_a_damaged_checkpoint_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "line.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0broken")
    with pytest.raises(FileFormatError, match="points past the end"):
        train(Line(), Budget(4), tmp_path, silent, resume=True)


def test_divergence_stops_the_run_with_its_step(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="diverged") as caught:
        train(Line(broken_at=3), Budget(10), tmp_path, silent)
    assert caught.value.where == "line, step 3"


def test_progress_is_reported_step_by_step(tmp_path: Path) -> None:
    seen = []
    train(Line(), Budget(4), tmp_path, lambda name, done, total, loss: seen.append((name, done, total)))
    assert seen == [("line", done, 4) for done in range(1, 5)]
