"""The order of scales in NVIDIA's kernels: tiles of 128 rows by 4 blocks, each as 32 rows of 16.

The index is written out, since a reader needs nothing else of comfy-kitchen, whose import takes longer than
torch's; the tests hold it to ``comfy_kitchen.to_blocked``.
"""

from __future__ import annotations

import numpy as np


def blocked_shape(rows: int, columns: int) -> tuple[int, int]:
    """The shape of a tensor with room for scales of ``rows`` by ``columns`` blocks."""
    return -(-rows // 128) * 128, -(-columns // 4) * 4


def from_blocked(scales: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Scales in that order, of any shape, as (rows, columns)."""
    padded = blocked_shape(rows, columns)
    tiles = scales.reshape(padded[0] // 128, padded[1] // 4, 32, 4, 4)
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1, 4).reshape(padded)[:rows, :columns])


def to_blocked(scales: np.ndarray) -> np.ndarray:
    """Scales (rows, columns) in that order, with zeros where it has room for more."""
    rows, columns = scales.shape
    padded = np.zeros(blocked_shape(rows, columns), scales.dtype)
    padded[:rows, :columns] = scales
    tiles = padded.reshape(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1, 4)).reshape(padded.shape)
