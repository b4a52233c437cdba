"""The start of a training: the packages it needs, and accelerate's processes, which must see each other."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from paramerge.errors import UsageError
from paramerge.generation.loading import pick_device
from paramerge.training.config import TrainConfig

__all__ = ["accelerator_for", "require_optimiser", "require_packages", "require_tracker"]

_PACKAGES = ("accelerate", "diffusers", "matplotlib", "peft", "PIL", "safetensors", "transformers")
_TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""The packages of accelerate's trackers; without one of them accelerate would go on in silence."""
_CUT_UP = {
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""Variables by which ``accelerate launch`` cuts a model up."""
_PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables by which launchers and MPIs state the number of processes."""


def require_packages(config: TrainConfig) -> None:
    """Refuse to go on without the packages that this training needs.

    Raises
    ------
    UsageError
        Some are not installed.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise UsageError(
            "training needs packages that are not installed",
            found=f"without {', '.join(missing)}",
            hint="pip install 'paramerge[train]'",
        )
    require_tracker(config.tracker)
    require_optimiser(config)


def require_optimiser(config: TrainConfig) -> None:
    """Refuse an optimiser whose package is not installed.

    Raises
    ------
    UsageError
        It is not; the message has the command that installs it.
    """
    record = config.optimiser_record
    if find_spec(record.module) is None:
        raise UsageError(
            "this optimiser's package is not installed",
            where="optimiser",
            expected=record.package,
            found=f"{record.name} without it",
            hint=f"pip install {record.package}",
        )


def require_tracker(tracker: str) -> None:
    """Refuse a tracker whose package is not installed.

    Raises
    ------
    UsageError
        It is not; the message has the command that installs it.
    """
    names = _TRACKERS.get(tracker, ())
    if names and all(find_spec(name) is None for name in names):
        raise UsageError(
            "this tracker's package is not installed",
            where="tracker",
            expected=" or ".join(names),
            found="neither" if len(names) > 1 else "not installed",
            hint=f"pip install {names[0]}",
        )


def accelerator_for(config: TrainConfig) -> Any:
    """Accelerate's view of this process, and of those it was started with.

    Raises
    ------
    UsageError
        The model would be cut up over devices, several processes were meant that do not see each other, the
        device is not here, or the tracker's package is not installed.
    """
    require_tracker(config.tracker)
    require_optimiser(config)
    for name, kind in _CUT_UP.items():
        if os.environ.get(name, "false").lower() == "true":
            raise _cut_up(kind)
    import torch
    from accelerate import Accelerator  # type: ignore[attr-defined]
    from accelerate.utils import DistributedType  # type: ignore[attr-defined]

    _choose_device(config.device)
    _forget_other_trainings(config)
    log_with = None if config.tracker == "none" else config.tracker
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.device == "cpu",
        log_with=log_with,
        project_dir=str(config.output) if log_with else None,
    )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise _cut_up(accelerator.distributed_type)
    _check_processes(accelerator.num_processes)
    wanted = torch.device(config.device or accelerator.device)
    if wanted.type != accelerator.device.type or (accelerator.num_processes > 1 and wanted.index is not None):
        raise UsageError(
            "the training would not run on the device that was asked for",
            where="device",
            expected=wanted,
            found=f"{accelerator.device} in {accelerator.num_processes} processes",
            hint="with several processes give the kind alone, such as cuda: each takes its own",
        )
    return accelerator


def _choose_device(name: str | None) -> None:
    """Refuse a device that is not here; make the GPU with this number the one that is used."""
    if name is None:
        return
    import torch

    pick_device(name)
    device = torch.device(name)
    if device.type == "meta":
        raise UsageError("this device holds no numbers", where="device", expected="cpu, cuda", found=name)
    if device.index is not None and device.type != "cpu":
        getattr(torch, device.type).set_device(device)


def _forget_other_trainings(config: TrainConfig) -> None:
    """Let a process train again with another precision or device: accelerate remembers those of before."""
    import torch
    from accelerate.state import AcceleratorState, PartialState

    on_cpu = config.device is not None and torch.device(config.device).type == "cpu"
    partial: Any = PartialState._shared_state
    alone = partial and not torch.distributed.is_initialized()
    moved = alone and config.device is not None and (partial["device"].type == "cpu") != on_cpu
    if moved or AcceleratorState._shared_state.get("_mixed_precision", "no") != config.mixed_precision:
        AcceleratorState._reset_state(reset_partial_state=moved)


def _cut_up(kind: object) -> UsageError:
    return UsageError(
        "a model cut up over several devices cannot be trained here",
        where="accelerate's configuration",
        expected="MULTI_GPU, MULTI_CPU or a single process",
        found=kind,
        hint="adapters are small and each device holds the whole frozen model: choose MULTI_GPU",
    )


def _check_processes(seen: int) -> None:
    """Each process alone would train on its own share as if it were all, and write over the others' files."""
    meant = max(int(os.environ.get(name) or 1) for name in _PROCESSES)
    if meant not in (1, seen):
        raise UsageError(
            "several processes were started that do not see each other",
            where="accelerate's configuration",
            expected=f"{meant} processes",
            found=seen,
            hint="start them by accelerate launch --multi_gpu, or by torchrun; on CPUs with --device cpu",
        )
    # for --cpu, accelerate's launcher starts one process whatever --num_processes says, unless by MPI
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and seen == 1 and not any(name in os.environ for name in _PROCESSES):
        raise UsageError(
            "accelerate's launcher was given several processes and started one",
            where="accelerate launch --cpu",
            expected="processes that see each other",
            found=1,
            hint="torchrun --standalone --nproc-per-node 2 -m paramerge.training ... --device cpu; "
            "for one process leave --num_processes out",
        )
