"""The records of a training: a log, a plot of the loss, pictures, and a tracker of accelerate's."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paramerge.files.writer import append_line, make_folder, write_bytes
from paramerge.training.config import TrainConfig
from paramerge.training.held_out import HeldOut
from paramerge.training.methods import text_encoders
from paramerge.training.models import ModelKind
from paramerge.training.moments import unwrapped
from paramerge.training.placing import lent
from paramerge.training.state import TrainingState

__all__ = ["Watcher", "smoothed"]

_PLOT_EVERY = 20


class Watcher:
    """Writes into the output folder; made on the main process alone."""

    def __init__(
        self, pipeline: Any, config: TrainConfig, accelerator: Any, held_out: HeldOut, kind: ModelKind
    ) -> None:
        self._pipeline = pipeline
        self._config = config
        self._accelerator = accelerator
        self._folder = config.output
        self._held_out = held_out
        self._kind = kind
        if config.tracker != "none":
            settings = {key: str(value) for key, value in config.plain().items()}
            accelerator.init_trackers("paramerge", config=settings)

    def after_step(self, state: TrainingState, rate: float) -> None:
        """Log the step, and plot where it is time."""
        loss, last = state.losses[-1], state.step == self._config.steps
        with _never_ending("the log", state.step):
            line = json.dumps({"step": state.step, "loss": loss, "rate": rate}) + "\n"
            append_line(self._folder / "log.jsonl", line.encode(), durable=False)
            self._accelerator.log({"loss": loss, "rate": rate}, step=state.step)
        if last or state.step % _PLOT_EVERY == 0:
            with _never_ending("the plot of the loss", state.step):
                write_bytes(self._folder / "loss.png", loss_plot(state.losses))

    def looks_at(self, step: int) -> bool:
        """Whether there are pictures to draw, or a loss to measure, after ``step``."""
        config = self._config
        due = config.validation_every and step % config.validation_every == 0
        return bool((config.validation_prompts or self._held_out) and (due or step == config.steps))

    def begin_again(self, state: TrainingState, rates: Sequence[float]) -> None:
        """Write the log anew up to the step that a run resumes from, and look at what was due at it."""
        lines = []
        for i, (loss, rate) in enumerate(zip(state.losses, rates, strict=True)):
            lines.append(json.dumps({"step": i + 1, "loss": loss, "rate": rate}))
            if i + 1 in state.validation:
                lines.append(_validation_line(i + 1, state.validation[i + 1]))
        write_bytes(self._folder / "log.jsonl", "".join(line + "\n" for line in lines).encode())
        if state.step and self.looks_at(state.step):
            self.look(state, again=False)  # a run may have been stopped between the checkpoint and this

    def look(self, state: TrainingState, *, again: bool = True) -> None:
        """The loss of held-out pictures into the log, and ``samples/step-00000123.png``.

        That has a row for each prompt and a column for each seed; without ``again`` only if it is missing.
        """
        if self._held_out and state.step not in state.validation:
            with _never_ending("the loss of held-out pictures", state.step):
                self._measure(state)
        if self._config.validation_prompts and (again or not self._pictures_of(state.step).exists()):
            with _never_ending("the pictures of validation", state.step):
                self._draw(state)

    def _measure(self, state: TrainingState) -> None:
        others = text_encoders(self._pipeline).values()
        with (
            lent(others, self._accelerator.device),
            drawing(self._pipeline),
            averaged(state),
            self._accelerator.autocast(),
        ):
            found = self._held_out()
        state.validation[state.step] = found
        line = _validation_line(state.step, found) + "\n"
        append_line(self._folder / "log.jsonl", line.encode(), durable=False)
        self._accelerator.log({"validation_loss": found}, step=state.step)

    def _draw(self, state: TrainingState) -> None:
        from paramerge.generation.grid import Row, labelled_grid, png
        from paramerge.generation.sampling import Request, draw

        config = self._config
        request = Request(
            config.validation_prompts,
            seeds=config.validation_seeds,
            steps=config.validation_steps,
            guidance=config.validation_guidance,
            width=config.resolution,
            height=config.resolution,
        )
        others = [self._pipeline.vae, *text_encoders(self._pipeline).values()]
        with (
            lent(others, self._accelerator.device),
            drawing(self._pipeline),
            averaged(state),
            self._precision(),
        ):
            drawn = draw(self._pipeline, request)
        rows = [Row(prompt, pictures) for prompt, pictures in zip(request.prompts, drawn, strict=True)]
        image = labelled_grid(rows, [f"seed {seed}" for seed in request.seeds])
        path = self._pictures_of(state.step)
        make_folder(path.parent)
        write_bytes(path, png(image, {"step": str(state.step)}))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Autocast; but a transformer's pipeline goes as a whole in its own dtype, the autoencoder, too."""
        if not self._kind.flow:
            with self._accelerator.autocast():
                yield
            return
        vae, before = self._pipeline.vae, self._pipeline.vae.dtype
        vae.to(getattr(self._pipeline, self._kind.component).dtype)
        try:
            yield
        finally:
            vae.to(before)

    def _pictures_of(self, step: int) -> Path:
        return self._folder / "samples" / f"step-{step:08d}.png"


def _validation_line(step: int, loss: float) -> str:
    return json.dumps({"step": step, "validation_loss": loss})


@contextmanager
def _never_ending(what: str, step: int) -> Iterator[None]:
    """Keep what only shows how a training goes from ending it: NaN, a full disk, a device's memory."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"step {step}: {what} failed, the training goes on ({reason})", stacklevel=3)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # of the call that ran out of memory


@contextmanager
def drawing(pipeline: Any) -> Iterator[None]:
    """The models in evaluation mode, and back as they were."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    models = [model for name in names if (model := getattr(pipeline, name, None)) is not None]
    before = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, training in zip(models, before, strict=True):
            model.train(training)


@contextmanager
def averaged(state: TrainingState) -> Iterator[None]:
    """The average in the parameters' place, where there is one; then the parameters again, to the bit.

    The average is the state's, or an optimiser's that keeps one.
    """
    optimizer: Any = unwrapped(state.optimizer)
    own = hasattr(optimizer, "eval")
    moved = state.parameters if own else state.average
    kept = {name: state.parameters[name].detach().clone() for name in moved}
    with torch.no_grad():
        if own:
            optimizer.eval()
        for name, value in state.average.items():
            state.parameters[name].copy_(value)
        try:
            yield
        finally:
            if own:
                optimizer.train()
            for name, value in kept.items():
                state.parameters[name].copy_(value)


def smoothed(losses: Sequence[float], window: int = 20) -> np.ndarray:
    """The mean of the last ``window`` losses (fewer at the start), one for each step."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(losses, np.float64))])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def loss_plot(losses: Sequence[float]) -> bytes:
    """A PNG of the losses and their running mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, linewidth=0.6, alpha=0.4, label="loss")
    axes.plot(steps, smoothed(losses), label="mean of 20")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(loc="upper right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
