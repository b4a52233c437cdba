"""Cutting a file into pieces of work: neighbouring tensors that fill a buffer, in file order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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
    parts: Mapping[str, int] = field(default_factory=dict)
    """By key, where the tensors begin that are made and written with it."""


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
    for placed in _placed(tensors, data_start):
        plan = placed.plan
        large = held_bytes(plan.info.nbytes, plan.nbytes, plan.converted) > BUFFER_BYTES
        together = held_bytes(
            read + plan.info.nbytes, written + plan.nbytes, converted=converted or plan.converted
        )
        gap = bool(group) and not _is_next(group[-1], placed)
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


def _placed(tensors: Sequence[TensorPlan], data_start: int) -> Iterator[Placed]:
    """Each tensor at its place in the output, but for those that are written with another one."""
    positions, position = {}, data_start
    parts: dict[str, dict[str, int]] = {}
    for plan in tensors:
        positions[plan.info.key] = position
        if plan.written_with is not None:
            parts.setdefault(plan.written_with, {})[plan.info.key] = position
        position += plan.nbytes
    for plan in tensors:
        if plan.written_with is None:
            yield Placed(plan, positions[plan.info.key], parts.get(plan.info.key, {}))


def _is_next(before: Placed, placed: Placed) -> bool:
    """Whether nothing is between two tensors, neither in the source nor in the output."""
    adjoin = before.position + before.plan.nbytes == placed.position
    return adjoin and before.plan.info.stop == placed.plan.info.start
