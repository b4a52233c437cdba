"""Processes that train together: all from the first one's state, on the same data and settings.

Each process makes the start itself, and an eigenvector is free in its sign, and in a degenerate space in
more; on a processor with other instructions it comes out otherwise. Averaged gradients of different
parameters would train neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paramerge.errors import UsageError
from paramerge.training.state import TrainingState, packed, unpack

__all__ = ["check_same", "share_state", "state_sha256"]


def check_same(facts: Mapping[str, Any], accelerator: Any) -> None:
    """Refuse to go on where a process has other ``facts`` (plain values) than the first one.

    Raises
    ------
    UsageError
        One of them differs.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object  # type: ignore[attr-defined]

    first, *others = gather_object([dict(facts)])
    for process, found in enumerate(others, 1):
        for name, value in first.items():
            if found[name] != value:
                raise UsageError(
                    f"the processes do not have the same {name.replace('_', ' ')}",
                    where=f"process {process}",
                    expected=value,
                    found=found[name],
                    hint="give every process the same flags, and the same files",
                )


def share_state(state: TrainingState, accelerator: Any) -> None:
    """Give every process the state of the first: parameters, moments, average, step and losses.

    Raises
    ------
    UsageError
        A checksum shows that some process did not get it.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast, broadcast_object_list  # type: ignore[attr-defined]

    facts, tensors = packed(state)
    plan = [facts, {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}]
    broadcast_object_list(plan)
    first, device = accelerator.is_main_process, accelerator.device
    facts, forms = plan
    values = {
        key: broadcast(
            tensors[key].to(device).contiguous() if first else torch.empty(shape, dtype=dtype, device=device)
        )
        for key, (shape, dtype) in forms.items()
    }
    if not first:
        unpack(state, facts, values)
    check_same({"state": state_sha256(state)}, accelerator)


def state_sha256(state: TrainingState) -> str:
    """SHA-256 (hex) of all that :func:`~paramerge.training.state.packed` gives."""
    facts, tensors = packed(state)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(_bytes(tensors[key]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
