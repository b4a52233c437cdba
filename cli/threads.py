"""How many threads NumPy's linear algebra takes: one, for commands that work on very many small matrices."""

from __future__ import annotations

import os
import sys

__all__ = ["one_blas_thread"]

_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def one_blas_thread() -> None:
    """Ask for one thread, unless the user asked for another number; only works before NumPy is imported.

    Threads that wait for one another over matrices of 64 x 32 make them slower, on a busy machine tenfold.
    """
    if "numpy" in sys.modules:
        return
    for variable in _VARIABLES:
        os.environ.setdefault(variable, os.environ.get("OMP_NUM_THREADS") or "1")
