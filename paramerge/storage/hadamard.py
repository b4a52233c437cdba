"""The rotation of ConvRot: groups of inputs by a regular Hadamard matrix."""

from __future__ import annotations

import math

import numpy as np


def is_group(size: object) -> bool:
    """Whether there is such a matrix of this size: a power of 4."""
    return type(size) is int and size >= 4 and math.log(size, 4) % 1 == 0


def hadamard(size: int) -> np.ndarray:
    """The regular Hadamard matrix of ``size`` (a power of 4), orthonormal, (size, size) float64."""
    smallest = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], np.float64)
    matrix: np.ndarray = smallest
    while len(matrix) < size:
        matrix = np.kron(matrix, smallest)
    return matrix / math.sqrt(size)
