"""Cutting a file into pieces of work: neighbouring tensors that fill a buffer, in file order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paramerge.merge.plan import TensorPlan

__all__ = ["BUFFER_BYTES", "WORKERS", "Placed", "Task", "make_tasks"]

WORKERS = 4
"""Threads that read, compute and write: two keep two cores busy while the others wait for the disk."""

BUFFER_BYTES = 16 << 20
"""Bytes of file that one worker holds at a time."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of the plan and where its bytes begin in the output file."""

    plan: TensorPlan
    position: int


@dataclass(frozen=True, slots=True)
class Task:
    """Neighbouring tensors that one worker handles at once, or (``large``) one that exceeds the buffer."""

    tensors: tuple[Placed, ...]
    large: bool


def make_tasks(tensors: Sequence[TensorPlan], data_start: int) -> list[Task]:
    """Cut the tensors of a file, whose output data begins at ``data_start``, into tasks in file order."""
    tasks: list[Task] = []
    group: list[Placed] = []
    read = written = 0
    position = data_start
    for plan in tensors:
        placed = Placed(plan, position)
        position += plan.nbytes
        large = max(plan.info.nbytes, plan.nbytes) > BUFFER_BYTES
        if group and (large or max(read + plan.info.nbytes, written + plan.nbytes) > BUFFER_BYTES):
            tasks.append(Task(tuple(group), large=False))
            group, read, written = [], 0, 0
        if large:
            tasks.append(Task((placed,), large=True))
        else:
            group.append(placed)
            read, written = read + plan.info.nbytes, written + plan.nbytes
    if group:
        tasks.append(Task(tuple(group), large=False))
    return tasks
