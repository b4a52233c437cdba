"""Adapters whose numbers are beyond float64 when multiplied: no warning halfway, but a look at the result."""

from __future__ import annotations

import numpy as np

from paramerge.errors import NonFiniteError


def overflowing() -> np.errstate:
    """A context, for the thread that enters it, in which NumPy does not warn of overflow.

    For work whose results are checked: every verb refuses to write NaN or Inf, and says where they are.
    """
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def beyond_float64(layer: object) -> NonFiniteError:
    """The error for a layer whose factors are finite, and their product is not."""
    return NonFiniteError(
        "the factors of a layer are too large to be multiplied",
        where=layer,
        expected="a change within the range of float64",
        hint="the adapter is damaged: nothing that was trained is as large",
    )
