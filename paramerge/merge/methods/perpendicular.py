"""The part of a difference that another difference does not have."""

from __future__ import annotations

import numpy as np

from paramerge.merge.methods.add_difference import first_at_zero
from paramerge.merge.methods.method import Method
from paramerge.merge.methods.parameters import Strength


def perpendicular(gram: np.ndarray, *, strength: Strength = 1.0) -> np.ndarray:
    """Perpendicular: ``a + s (d - <d, e> / <e, e> e)`` with ``d = b - c`` and ``e = a - c``.

    The part of ``b``'s difference to ``c`` at right angles to that of ``a``, of the tensor as one vector.
    """
    # differences to a: b - c = (b - a) - (c - a), and a - c = -(c - a)
    d, e = np.array([0.0, 1.0, -1.0]), np.array([0.0, 0.0, -1.0])
    own = e @ gram @ e
    return np.asarray(strength * (d - (d @ gram @ e / own if own > 0 else 0.0) * e))


PERPENDICULAR = Method(
    "perpendicular",
    perpendicular,
    "differences",
    (3, 3),
    "add_perpendicular of sd-mecha; Gram and Schmidt",
    first_at_zero,
)
