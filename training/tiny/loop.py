"""The training loop, the same for each part: it stops on time and resumes exactly."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from paramerge.errors import NonFiniteError
from paramerge.training.tiny.checkpoint import TrainingState, load_state, save_state

__all__ = ["Budget", "Part", "Report", "train"]

_WARMUP = 100
_CURVE_EVERY = 25
_CLIP = 1.0
_LEAST = 0.01
"""The least share of the learning rate in a cooldown, so that no time is spent for nothing."""


class Part(Protocol):
    """Something to train."""

    name: str
    model: nn.Module
    identity: str
    """The identity of its checkpoint: seed, sizes, data."""

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        """The loss of ``model`` on the batch of ``step``, which depends on the seed and ``step`` alone."""


Report = Callable[[str, int, int, float], None]
"""Called with the part's name, steps done, steps in all, and the mean loss of late."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The length of a part's training: ``steps`` steps, or ``seconds`` if these are over first."""

    steps: int
    seconds: float | None = None
    learning_rate: float = 4e-4
    decay: float = 0.996
    """The decay of the average that follows the weights."""
    cooldown: float = 0.0
    """The share of the budget, at its end, in which the learning rate falls to nothing."""
    save_every: int = 200

    def rate(self, step: int, seconds: float) -> float:
        """The learning rate of ``step``, ``seconds`` into this call: a warm-up, a plain, a cooldown."""
        spent = step / self.steps
        if self.seconds:
            spent = max(spent, min(1.0, seconds / self.seconds))
        slope = (1 - spent) / self.cooldown if self.cooldown else 1.0
        return self.learning_rate * min(1.0, (step + 1) / _WARMUP, max(slope, _LEAST))


def train(part: Part, budget: Budget, folder: Path, report: Report, *, resume: bool = False) -> TrainingState:
    """Train ``part``, with a checkpoint in ``folder`` from time to time and at the end.

    The learning rate is constant after a warm-up, but for a cooldown if the budget has one, and the weights'
    average is the one that is used, so training can go on from any point. ``seconds`` count this call alone.

    Raises
    ------
    NonFiniteError
        The loss is NaN or Inf.
    CheckpointError
        The checkpoint to resume is of another run.
    """
    average = copy.deepcopy(part.model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        part.model.parameters(), budget.learning_rate, weight_decay=1e-3, fused=True
    )
    state = TrainingState(part.model, average, optimizer)
    path = folder / f"{part.name}.safetensors"
    if resume and path.is_file():
        load_state(state, path, part.identity)
    began = saved = time.monotonic()
    before = state.seconds
    recent: list[float] = []
    while state.step < budget.steps:
        if budget.seconds is not None and time.monotonic() - began >= budget.seconds:
            break
        recent.append(_step(part, state, budget.rate(state.step, time.monotonic() - began), budget.decay))
        state.seconds = before + time.monotonic() - began
        if state.step % _CURVE_EVERY == 0 or state.step == budget.steps:
            state.curve.append((state.step, sum(recent) / len(recent)))
            recent.clear()
        report(part.name, state.step, budget.steps, state.curve[-1][1] if state.curve else recent[-1])
        if state.step % budget.save_every == 0 and time.monotonic() > saved + 20:
            save_state(state, path, part.identity)
            saved = time.monotonic()
    save_state(state, path, part.identity)
    return state


def _step(part: Part, state: TrainingState, rate: float, most_decay: float) -> float:
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.model.train()
    loss = part.loss(state.model, state.step)
    value = float(loss.detach())
    if not torch.isfinite(loss.detach()):
        raise NonFiniteError(
            "the training diverged: the loss is not finite",
            where=f"{part.name}, step {state.step}",
            found=value,
            hint="resume from the last checkpoint with a smaller learning rate",
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.model.parameters(), _CLIP)
    state.optimizer.step()
    state.step += 1
    # early on the average must forget the random start
    decay = min(most_decay, state.step / (state.step + 10))
    with torch.no_grad():
        pairs = zip(state.average.parameters(), state.model.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - decay)
    return value
