"""The division of tasks among accelerate's processes: each takes every n-th.

A task is the same piece of work however many processes there are, down to which pictures are batched
together; so the results are the same, too. The processes share the folder they write to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Processes", "find_processes"]

_Task = TypeVar("_Task")


def _no_wait() -> None:
    """Wait for nobody."""


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes
    ----------
    rank, count:
        Its number from 0, and how many there are.
    wait:
        Returns when all have called it.
    device:
        The device accelerate gave it; None where it started no other process.
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = _no_wait
    device: str | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, and writes the results of all."""
        return self.rank == 0

    def share(self, tasks: Sequence[_Task]) -> Sequence[_Task]:
        """The tasks of this process."""
        return tasks[self.rank :: self.count]


def find_processes(device: str | None = None) -> Processes:
    """The processes that ``accelerate launch`` (or torchrun) started; one alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate.state import PartialState

    state: Any = PartialState(cpu=device == "cpu")
    # a CPU may be numbered there, but has no number anywhere else
    found = "cpu" if state.device.type == "cpu" else str(state.device)
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone, found)
