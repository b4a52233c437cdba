"""Cosine B: by columns and by the whole tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paramerge.merge.methods.cosine import column_cosines, towards_second
from paramerge.merge.methods.method import ColumnSums, Method
from paramerge.merge.methods.parameters import Strength

if TYPE_CHECKING:
    import torch


def cosine_b(blocks: list[torch.Tensor], sums: ColumnSums, *, strength: Strength = 0.5) -> torch.Tensor:
    """Cosine B: as cosine A with ``cos`` the mean of each column's cosine and that of the whole tensor."""
    lengths = float(np.sqrt(sums.aa.sum()) * np.sqrt(sums.bb.sum()))
    whole = float(sums.ab.sum()) / lengths if lengths else 0.0
    return towards_second(blocks, (column_cosines(sums) + whole) / 2, strength)


COSINE_B = Method(
    "cosine-b",
    cosine_b,
    "columns",
    (2, 2),
    "cosineB of SuperMerger, tensor by tensor as add_cosine_b of sd-mecha",
)
