"""The nearest Kronecker product of a matrix (Van Loan and Pitsianis, 1993).

``||D - A (x) B||`` is ``||R(D) - vec(A) vec(B)^T||`` for a rearrangement R of the elements, so the nearest
product is the leading singular pair of ``R(D)``. DiffuseKronA's public code has the rows in another order,
which is another rearrangement and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paramerge.extract.lowrank import leading


@dataclass(frozen=True)
class NearestKronecker:
    """``A (x) B`` with the norm split evenly between A (a1, a2) and B (b1, b2).

    Attributes
    ----------
    error:
        ``||D - A (x) B|| / ||D||``.
    excess:
        The most by which that exceeds the best, relative to ``||D||``.
    """

    A: np.ndarray
    B: np.ndarray
    error: float
    excess: float


def nearest_kronecker(D: np.ndarray, a1: int, a2: int, *, shuffled: bool = False) -> NearestKronecker:
    """The nearest product whose first factor is (a1, a2).

    Parameters
    ----------
    D:
        (d, k) float64; a1 divides d and a2 divides k. A convolution's kernel belongs to B's columns.
    shuffled:
        Rows in the order of DiffuseKronA's code: ``D[p a1 + q, i b2 + j] = A[q, i] B[p, j]``.
    """
    b1, b2 = D.shape[0] // a1, D.shape[1] // a2
    if shuffled:
        axes = D.reshape(b1, a1, a2, b2).transpose(1, 2, 0, 3)
    else:
        axes = D.reshape(a1, b1, a2, b2).transpose(0, 2, 1, 3)
    found = leading(axes.reshape(a1 * a2, b1 * b2), rank=1)
    root = np.sqrt(found.s[0])
    return NearestKronecker(
        (root * found.U[:, 0]).reshape(a1, a2),
        (root * found.Vh[0]).reshape(b1, b2),
        found.error(1),
        found.excess(1),
    )
