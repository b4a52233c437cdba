"""The number of threads, chosen before NumPy and torch start theirs; the user's ``OMP_NUM_THREADS`` wins.

Threads that wait for one another over small matrices make each other slower, on a busy machine several times,
and their results may depend on their number. So NumPy's linear algebra has one (baking has workers of its
own), and torch has one for models that are small; for large ones it has all cores, which wait for one another
asleep. The choice depends on the call alone, never on how busy the machine is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

_USERS = "OMP_NUM_THREADS"
_BLAS = ("OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS")
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Threads that wait asleep leave the core to others, and cost a few microseconds a region."""
SMALL_MODEL = 250_000_000
"""Bytes of weights below which a step is too little work for several threads; SD1.5 has ten times as many."""


_LARGE_MATRICES = ("extract", "explain")
"""Verbs that work on one large matrix after another, for which NumPy's threads are worth their waiting."""


def choose_threads(verb: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that NumPy's and torch's libraries read when they are loaded; variables that are set
    already stay."""
    for variable in () if verb in _LARGE_MATRICES else _BLAS:
        environment.setdefault(variable, environment.get(_USERS) or "1")
    for variable, value in _WAITING.items():
        environment.setdefault(variable, value)


def threads_for_model(*places: Path | None) -> None:
    """Let torch take one thread where all models at ``places`` (files or folders) are small.

    Nothing happens where the user chose, or where a place is no file or folder, as the hub's names are.
    """
    if os.environ.get(_USERS) or not all(place is not None and _is_small(place) for place in places):
        return
    if "torch" not in sys.modules:
        os.environ[_USERS] = "1"  # read when torch is loaded, and by the processes that this one starts
        return
    import torch

    torch.set_num_threads(1)


def _is_small(place: Path) -> bool:
    if place.is_file():
        return place.stat().st_size < SMALL_MODEL
    if not place.is_dir():
        return False
    files = (path for path in place.rglob("*.safetensors") if path.is_file())
    return sum(path.stat().st_size for path in files) < SMALL_MODEL
