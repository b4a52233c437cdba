"""Cosine A: by columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramerge.merge.methods.cosine import column_cosines, towards_second
from paramerge.merge.methods.method import ColumnSums, Method
from paramerge.merge.methods.parameters import Strength

if TYPE_CHECKING:
    import torch


def cosine_a(blocks: list[torch.Tensor], sums: ColumnSums, *, strength: Strength = 0.5) -> torch.Tensor:
    """Cosine A: ``k a + (1 - k) b`` with ``k = cos - s``, from 0 to 1, by columns.

    ``cos`` is the cosine between a column of ``a`` and that of ``b``, over the layer's outputs. Where the
    models are alike, more of ``a`` stays.
    """
    return towards_second(blocks, column_cosines(sums), strength)


COSINE_A = Method(
    "cosine-a",
    cosine_a,
    "columns",
    (2, 2),
    "cosineA of SuperMerger, tensor by tensor as add_cosine_a of sd-mecha",
)
