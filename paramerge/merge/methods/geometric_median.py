"""The model whose distances to the others sum up to the least."""

from __future__ import annotations

import numpy as np

from paramerge.merge.methods.method import Method
from paramerge.merge.methods.parameters import Shares
from paramerge.merge.methods.shares import only_one_counts, refuse_negative

_STEPS = 1000
_SETTLED = 1e-12


def geometric_median(gram: np.ndarray, *, weights: Shares = ()) -> np.ndarray:
    """Geometric median: the ``y`` with the least ``sum w_i |y - m_i|``, of the tensor as one vector.

    By Weiszfeld's steps ``y = sum (w_i / d_i) m_i / sum (w_i / d_i)`` with ``d_i = |y - m_i|``; a model at
    which they come to a stand is the median if the pull of the others on it is less than its weight.
    """
    shares = np.asarray(weights, np.float64) / sum(weights)
    scale = float(np.sqrt(np.diag(gram).max()))
    if scale == 0:
        return shares
    y = shares.copy()
    for _ in range(_STEPS):
        distances = _distances(gram, y)
        at = int(np.argmin(distances))
        if distances[at] <= _SETTLED * scale:
            pulls = np.delete(shares / np.maximum(_distances(gram, np.eye(len(y))[at]), _SETTLED * scale), at)
            others = np.delete(np.eye(len(y)) - np.eye(len(y))[at], at, axis=0)
            pull = pulls @ others
            if pull @ gram @ pull <= shares[at] ** 2:
                return np.asarray(np.eye(len(y))[at])
            distances = np.maximum(distances, _SETTLED * scale)
        new = shares / distances
        new /= new.sum()
        moved = new - y
        y = new
        if moved @ gram @ moved <= (_SETTLED * scale) ** 2:
            break
    return y


def _distances(gram: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = y @ gram @ y - 2 * (gram @ y) + np.diag(gram)
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


GEOMETRIC_MEDIAN = Method(
    "geometric-median",
    geometric_median,
    "differences",
    (2, None),
    "Weiszfeld 1937; Pillutla et al. 2022, arXiv:1912.13445",
    only_one_counts,
    check=refuse_negative,
)
