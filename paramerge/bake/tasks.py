"""Cutting a file into pieces of work: neighbouring tensors that fill a buffer, in file order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paramerge.apply.tensor_plan import TensorPlan

WORKERS = 4
"""Threads that read, compute and write: two keep two cores busy while the others wait for the disk."""

BUFFER_BYTES = 16 << 20
"""Bytes that one worker holds at a time: of the source, and of the output where that is a copy."""


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


def held_bytes(read: int, written: int, converted: bool) -> int:
    """Bytes in a worker's memory for this much of the source and of the output.

    A tensor that keeps its dtype is changed where it was read; a conversion has both.
    """
    return read + written if converted else max(read, written)


def make_tasks(tensors: Sequence[TensorPlan], data_start: int) -> list[Task]:
    """Cut the tensors of a file, whose output data begins at ``data_start``, into tasks in file order."""
    tasks: list[Task] = []
    group: list[Placed] = []
    read = written = 0
    converted = False
    position = data_start
    for plan in tensors:
        placed = Placed(plan, position)
        position += plan.nbytes
        large = held_bytes(plan.info.nbytes, plan.nbytes, plan.converted) > BUFFER_BYTES
        together = held_bytes(
            read + plan.info.nbytes, written + plan.nbytes, converted=converted or plan.converted
        )
        gap = bool(group) and group[-1].plan.info.stop != plan.info.start  # a tensor between them is left out
        if group and (large or gap or together > BUFFER_BYTES):
            tasks.append(Task(tuple(group), large=False))
            group, read, written, converted = [], 0, 0, False
        if large:
            tasks.append(Task((placed,), large=True))
        else:
            group.append(placed)
            read, written = read + plan.info.nbytes, written + plan.nbytes
            converted = converted or plan.converted
    if group:
        tasks.append(Task(tuple(group), large=False))
    return tasks
