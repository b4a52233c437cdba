"""The common part of cosine A and B: the second model where the first is unlike it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paramerge.merge.methods.method import ColumnSums

if TYPE_CHECKING:
    import torch

_LEAST = 1e-8


def column_cosines(sums: ColumnSums) -> np.ndarray:
    """The cosine between the models in each column; 0 where one of them is zero."""
    lengths = np.sqrt(sums.aa) * np.sqrt(sums.bb)
    cosines: np.ndarray = np.divide(sums.ab, lengths, out=np.zeros_like(sums.ab), where=lengths > _LEAST**2)
    return cosines


def towards_second(blocks: list[torch.Tensor], similarity: np.ndarray, strength: float) -> torch.Tensor:
    """``a + (1 - k)(b - a)``, where ``k`` is ``similarity - strength``, from 0 to 1, by column."""
    import torch

    a, b = blocks
    share = torch.from_numpy(1 - np.clip(similarity - strength, 0, 1)).to(a.dtype)
    return a.add_(b.sub_(a).mul_(share))
