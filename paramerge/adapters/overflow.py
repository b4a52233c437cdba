"""Adapters whose numbers are beyond float64 when multiplied: no warning halfway, but a look at the result."""

from __future__ import annotations

import numpy as np


def overflowing() -> np.errstate:
    """A context, of the thread that enters it, in which NumPy does not warn of overflow and what comes of it.

    For work whose results are looked at: every verb refuses to write NaN or Inf, and says where they are.
    """
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")
