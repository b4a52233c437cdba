"""Models on the device only while they are used: a training needs the UNet there, and the others at times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def lent(models: Iterable[Any], device: Any) -> Iterator[None]:
    """``models`` on ``device``; afterwards each is where it was, and the device's memory is free again."""
    before = [(model, model.device) for model in models]
    for model, _ in before:
        model.to(device)
    try:
        yield
    finally:
        for model, place in before:
            model.to(place)
        if device.type == "cuda":
            torch.cuda.empty_cache()
