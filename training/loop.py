"""DreamBooth personalisation, from top to bottom: ``train(config)``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paramerge.errors import CheckpointError, NonFiniteError
from paramerge.files.writer import write_bytes
from paramerge.training.agreement import check_same, share_state
from paramerge.training.batches import Batch, held_out_batches, known_texts, make_batches
from paramerge.training.chance import generator
from paramerge.training.class_pictures import draw_missing_class_pictures
from paramerge.training.config import PLACES, TrainConfig
from paramerge.training.config_file import config_to_toml
from paramerge.training.examples import Examples, load_examples
from paramerge.training.held_out import HeldOut, Loss
from paramerge.training.kept import Kept, weights_sha256
from paramerge.training.launching import accelerator_for
from paramerge.training.loading import load_model
from paramerge.training.methods import Trained, attach, text_encoders
from paramerge.training.models import ModelKind
from paramerge.training.objective import loss_of
from paramerge.training.objectives import Objective
from paramerge.training.objectives.diffusion import Diffusion, noise_schedule
from paramerge.training.objectives.flow import Flow
from paramerge.training.placing import lent
from paramerge.training.prompts import Prompts
from paramerge.training.quantised import quantise_frozen
from paramerge.training.run_folder import check_run_folder
from paramerge.training.sources import sources_of
from paramerge.training.speed import prepared_for_speed, tensor_float_32
from paramerge.training.state import TrainingState, latest_checkpoint, load_checkpoint, save_checkpoint
from paramerge.training.texts import TextEncoding
from paramerge.training.watching import Watcher, averaged

__all__ = ["Report", "TrainResult", "train"]

Report = Callable[[int, int, float], None]
"""Called after each step with the steps done, the steps in all, and the loss."""

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training: the adapter's files or folders, and the loss of every step."""

    adapter: tuple[Path, ...]
    losses: tuple[float, ...]
    seconds: float
    config_sha256: str
    data_sha256: str


def train(config: TrainConfig, *, resume: bool = False, report: Report | None = None) -> TrainResult:
    """Train ``config.method`` on a folder of pictures and save it into ``config.output``.

    One process, or as many as accelerate started. The whole batch of a step is ``batch_size * accumulation *
    processes``; its content does not depend on their shares of it.

    Raises
    ------
    UsageError
        A folder is missing or empty, the output holds a training and ``resume`` is not set, the processes do
        not see each other, and the like.
    FileFormatError
        A picture is damaged.
    CheckpointError
        The model cannot be loaded, or the checkpoint to resume from is of another run.
    NonFiniteError
        The loss or the gradient is NaN or Inf; the last checkpoint is kept.
    OutputError
        The output is not new or empty, is an input or inside one; or a file cannot be written, as on a full
        disk: the last checkpoint is kept.
    """
    began = time.monotonic()
    accelerator = accelerator_for(config)
    if accelerator.is_main_process:
        check_run_folder(config, resume)
    accelerator.wait_for_everyone()
    with tensor_float_32(config, accelerator.device):
        return _train(config, resume, report, accelerator, began)


def _train(
    config: TrainConfig, resume: bool, report: Report | None, accelerator: Any, began: float
) -> TrainResult:
    # the model as it is, the pictures and the prompts; on the device is what is used
    device, dtype = accelerator.device, _DTYPES[config.mixed_precision]
    frozen = torch.float32 if config.method == "dreambooth" else dtype
    pipeline, kind = load_model(config, frozen)
    model = getattr(pipeline, kind.component)
    objective = _objective(pipeline, kind, config)
    encoders = list(text_encoders(pipeline).values())
    if config.class_folder is not None:
        with lent([model, pipeline.vae, *encoders], device):
            draw_missing_class_pictures(pipeline, config, config.class_folder, accelerator)
    with lent([pipeline.vae], device):
        examples = load_examples(pipeline, config, device)

    # what is trained: float32, in models whose frozen weights may be narrower
    model.to(device)
    torch.manual_seed(config.seed)
    for encoder in encoders:
        encoder.to(device)
    trained = attach(pipeline, config)
    texts = TextEncoding(
        pipeline, device, trained.text, config.prompt_chunks, Kept(config.cache), kind.encode
    )
    texts.prepare(known_texts(examples, config))
    if not (trained.text or config.shuffle_tags):  # every text is encoded
        for encoder in encoders:
            encoder.to("cpu")
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    quantise_frozen(model, config)
    prepared_for_speed(model, config)
    model.train()

    def loss(batch: Batch, prompts: Prompts, settings: TrainConfig) -> Tensor:
        return loss_of(model, batch, prompts, objective, settings, dtype, kind)

    # the state, from the start or from where it stopped
    optimizer = accelerator.prepare(_optimizer(trained, config))
    course = _course(config)
    average = {name: p.detach().clone() for name, p in trained.parameters.items() if config.ema_decay}
    state = TrainingState(trained.parameters, optimizer, average, moving=config.optimiser_record.moving)
    slots = config.batch_size * config.accumulation * accelerator.num_processes
    identity = {"settings": config.identity(), "data": examples.data_sha256, "whole_batch": slots}
    if config.vae is not None:
        identity["autoencoder"] = weights_sha256([pipeline.vae])
    check_same(identity, accelerator)
    newest = latest_checkpoint(config.output / "checkpoints") if resume else None
    if newest is not None and accelerator.is_main_process:
        load_checkpoint(state, newest, identity)
    share_state(state, accelerator)
    _load_scale(state, accelerator)
    watcher = None
    if accelerator.is_main_process:
        write_bytes(config.output / "config.toml", config_to_toml(config).encode())
        batches = held_out_batches(examples, config, objective.fixed(config.held_out_times))
        watcher = Watcher(pipeline, config, accelerator, HeldOut(batches, texts, config, loss), kind)
        watcher.begin_again(state, [config.rate * course(step) for step in range(state.step)])

    # the steps
    saved = newest is not None
    exact = torch.float32 if accelerator.device.type == "mps" else torch.float64
    while state.step < config.steps:
        trained.before_step(state.step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * course(state.step)
        total = torch.zeros((), dtype=exact, device=accelerator.device)
        for micro in range(config.accumulation):
            share = _Slots(examples, config, state.step, micro, slots, accelerator, objective)
            with accelerator.autocast():
                part = _forward(share, texts, loss) / config.accumulation
            accelerator.backward(part)
            total += part.detach()
        _average_gradients(trained, accelerator)
        norm = accelerator.clip_grad_norm_(trained.parameters.values(), config.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        # the one look at the device's result of the step
        found, slope = torch.stack([accelerator.reduce(total, "mean"), norm.to(total)]).tolist()
        _check_finite(found, slope, state, accelerator)
        state.step += 1
        state.losses.append(found)
        _follow(state, config.ema_decay)
        if watcher is not None:
            watcher.after_step(state, config.rate * course(state.step - 1))
            draws = watcher.looks_at(state.step)
            due = config.save_every and (state.step % config.save_every == 0 or (draws and not saved))
            if due or state.step == config.steps:
                state.scale = {} if accelerator.scaler is None else accelerator.scaler.state_dict()
                save_checkpoint(state, config.output / "checkpoints", identity, config.checkpoints_limit)
                saved = True
            if draws:
                watcher.look(state)
        if report is not None and accelerator.is_main_process:
            report(state.step, config.steps, found)

    # the adapter
    adapter: tuple[Path, ...] = ()
    if accelerator.is_main_process:
        with averaged(state):
            adapter = tuple(trained.save(config.output, _metadata(config, examples, state)))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return TrainResult(
        adapter, tuple(state.losses), time.monotonic() - began, config.identity(), examples.data_sha256
    )


# --- the parts, in the order of their use -------------------------------------------------------------------


def _optimizer(trained: Trained, config: TrainConfig) -> torch.optim.Optimizer:
    # decay would shorten PaRa's B, whose norm is a hidden learning rate and nothing else
    decay = config.weight_decay if trained.decays else 0.0
    own = config.text_encoder_rate
    kinds = {
        "model": (config.rate, decay),
        "text": (own or config.rate, decay),
        "word": (config.word_rate, 0.0),
    }
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in trained.parameters.items():
        kind = "word" if name in trained.words else "text" if own and name.startswith("text_") else "model"
        rate, decay = kinds[kind]
        like = {"params": [], "lr": rate, "initial_lr": rate, "weight_decay": decay}
        groups.setdefault(kind, like)["params"].append(parameter)
    return config.optimiser_record.make(list(groups.values()), config)


def _course(config: TrainConfig) -> Callable[[int], float]:
    """The share of the learning rate in each step, by diffusers' schedules."""
    from diffusers.optimization import get_scheduler

    nothing = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    course: Any = get_scheduler(
        config.lr_scheduler,
        nothing,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.steps,
    )
    return lambda step: float(course.lr_lambdas[0](step))


@dataclass(frozen=True)
class _Slots:
    """The share of one process in one forward pass."""

    examples: Examples
    config: TrainConfig
    step: int
    micro: int
    total: int
    accelerator: Any
    objective: Objective

    def indices(self) -> Iterator[int]:
        each = self.config.batch_size
        first = (self.micro * self.accelerator.num_processes + self.accelerator.process_index) * each
        return iter(range(first, first + each))


def _objective(pipeline: Any, kind: ModelKind, config: TrainConfig) -> Objective:
    return (
        Flow(pipeline.scheduler, config.flow_weighting) if kind.flow else Diffusion(noise_schedule(pipeline))
    )


def _forward(slots: _Slots, texts: TextEncoding, loss: Loss) -> Tensor:
    config, indices = slots.config, list(slots.indices())
    batches = make_batches(slots.examples, config, slots.step, indices, slots.total, slots.objective.draw)
    # layers with chance of their own, such as dropout, begin at the same place in a resumed run
    chance = generator(config.seed, slots.step, slots.micro, slots.accelerator.process_index, "layers")
    torch.manual_seed(chance.initial_seed())
    parts = [loss(each, texts(each.texts), config) for each in batches]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def _load_scale(state: TrainingState, accelerator: Any) -> None:
    """Give the gradient scaler of float16, where there is one, its scale of then."""
    if accelerator.scaler is None or state.step == 0:
        return
    wanted = accelerator.scaler.state_dict().keys()
    if state.scale.keys() != wanted:
        raise CheckpointError(
            "the checkpoint is without the gradient scaler's state",
            where=f"step {state.step}",
            expected=", ".join(wanted),
            found=", ".join(state.scale) or "nothing",
            hint="resume on the kind of device that wrote it, or choose another output",
        )
    accelerator.scaler.load_state_dict(state.scale)


def _check_finite(loss: float, norm: float, state: TrainingState, accelerator: Any) -> None:
    """Refuse a loss or a gradient (its norm) that is NaN or Inf, before anything of it is saved.

    The scaler of float16 leaves steps of infinite gradients out and halves its scale; below a scale of 1 that
    is no overflow any more.
    """
    if not math.isfinite(loss):
        what, found = "loss", loss
    elif not math.isfinite(norm) and (accelerator.scaler is None or accelerator.scaler.get_scale() < 1):
        what, found = "gradient", norm
    else:
        return
    raise NonFiniteError(
        f"the training diverged: the {what} is not finite",
        where=f"step {state.step + 1}",
        found=found,
        hint="resume from the last checkpoint with a smaller learning rate, or without fp16",
    )


def _average_gradients(trained: Trained, accelerator: Any) -> None:
    """The mean over all processes, in one message: adapters are small, so none has to be sent early."""
    if accelerator.num_processes == 1:
        return
    grads = [p.grad for p in trained.parameters.values() if p.grad is not None]
    together = accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
    for grad, part in zip(grads, together.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def _follow(state: TrainingState, decay: float) -> None:
    """Move the average towards the parameters; early on it must forget the start."""
    early = min(decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for name, slow in state.average.items():
            slow.lerp_(state.parameters[name], 1 - early)


def _metadata(config: TrainConfig, examples: Examples, state: TrainingState) -> dict[str, str]:
    """The adapter's metadata on its training: no path, and nothing that differs between equal runs."""
    private = {"output", "device", *PLACES}
    settings = {key: value for key, value in config.plain().items() if key not in private}
    settings["model"] = config.model.name
    return {
        "training.method": config.method,
        "training.config": json.dumps(settings, sort_keys=True),
        "training.config_sha256": config.identity(),
        "training.data_sha256": examples.data_sha256,
        "training.steps": str(state.step),
        "modelspec.trigger_phrase": ", ".join(source.prompt for source in sources_of(config)),
    }
