"""Ways of faster numbers: TensorFloat-32, channels last in memory, torch.compile; or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from paramerge.errors import UsageError
from paramerge.training.config import TrainConfig

__all__ = ["prepared_for_speed", "tensor_float_32"]


def prepared_for_speed(model: Any, config: TrainConfig) -> None:
    """Lay the model's convolutions out with channels last, and compile it, as ``config`` asks for.

    Raises
    ------
    UsageError
        The model has no convolutions, or two settings do not go together.
    """
    if config.channels_last:
        if not any(
            isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1) for module in model.modules()
        ):
            raise UsageError(
                "this model has no convolutions to lay out",
                where="channels_last",
                expected="a UNet",
                found=type(model).__name__,
            )
        model.to(memory_format=torch.channels_last)
    if config.compile:
        if config.tf32:
            raise UsageError(
                "a compiled PaRa cannot keep its own products out of TensorFloat-32",
                where="tf32",
                expected="tf32 or compile",
                found="both",
            )
        model.compile()


@contextmanager
def tensor_float_32(config: TrainConfig, device: Any) -> Iterator[None]:
    """A block in which products of float32 go by TensorFloat-32 where ``config`` asks for it; then as before.

    Raises
    ------
    UsageError
        The device is no GPU of CUDA's.
    """
    if not config.tf32:
        yield
        return
    if device.type != "cuda":
        raise UsageError(
            "this device has no TensorFloat-32", where="tf32", expected="a GPU of CUDA's", found=device
        )
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    try:
        for kind in kinds:
            kind.allow_tf32 = True
        yield
    finally:
        for kind, was in zip(kinds, before, strict=True):
            kind.allow_tf32 = was
