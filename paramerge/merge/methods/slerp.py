"""Spherical interpolation: the mean of the models' directions, at the mean of their lengths."""

from __future__ import annotations

import numpy as np

from paramerge.merge.methods.method import Method
from paramerge.merge.methods.parameters import Shares
from paramerge.merge.methods.shares import only_one_counts, refuse_negative

_STEPS = 200
_NEAR = 1e-12


def slerp(gram: np.ndarray, *, weights: Shares = ()) -> np.ndarray:
    """Spherical interpolation: the mean ``q`` of directions on the sphere times the mean ``|m|`` of lengths.

    ``|m| = sum w_i |m_i|`` and, with weights that sum to one, ``q`` is the point of the unit sphere that has
    ``sum w_i log_q(m_i / |m_i|) = 0``. For two models ``q = (sin((1 - t) o) u1 + sin(t o) u2) / sin(o)``,
    where ``o`` is the angle between them and ``t`` the second one's weight. A model that is zero has no
    direction: then, and where directions are opposite, it is the weighted sum.
    """
    shares = np.asarray(weights, np.float64) / sum(weights)
    lengths = np.sqrt(np.diag(gram))
    if not lengths.all():
        return shares
    cosines = gram / np.outer(lengths, lengths)
    if shares @ cosines @ shares < _NEAR:
        return shares
    q = shares / np.sqrt(shares @ cosines @ shares)
    for _ in range(_STEPS):
        seen = np.clip(cosines @ q, -1, 1)
        if seen.min() < _NEAR - 1:
            return shares
        angles = np.arccos(seen)
        sines = np.sin(angles)
        pulls = shares * np.divide(angles, sines, out=np.ones_like(angles), where=sines > 1e-8)
        step = pulls - (pulls @ seen) * q
        size = float(np.sqrt(max(0.0, step @ cosines @ step)))
        if size < _NEAR:
            break
        q = np.cos(size) * q + np.sin(size) / size * step
        q /= np.sqrt(q @ cosines @ q)
    result: np.ndarray = q * (shares @ lengths) / lengths
    return result


SLERP = Method(
    "slerp",
    slerp,
    "gram",
    (2, None),
    "Shoemake 1985; for more than two Buss and Fillmore 2001, Spherical Averages",
    only_one_counts,
    check=refuse_negative,
)
