"""Whole differences: of a layer's weight, a bias, a norm's weight (``diff``, ``diff_b``, ``w_norm``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paramerge.adapters.changes import Difference
from paramerge.adapters.contract import AdditiveModule, read_finite
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName

__all__ = ["DifferenceModule"]


@dataclass(frozen=True)
class DifferenceModule(AdditiveModule):
    """``W + diff``.

    Attributes
    ----------
    diff:
        In the weight's own shape; (n,) for a bias or a norm's weight.
    family:
        ``full``, or ``norm`` for what LyCORIS trains of norms.
    """

    name: ModuleName
    diff: StoredTensor
    family: str = "full"

    @property
    def rank(self) -> int:
        """The full rank of its shape."""
        return self.rank_bound

    @property
    def rank_bound(self) -> int:
        return min(self.out_features, self.in_features)

    @property
    def out_features(self) -> int:
        return self.diff.shape[0]

    @property
    def in_features(self) -> int:
        return math.prod(self.diff.shape[1:])

    @property
    def form(self) -> str:
        return "vector" if len(self.diff.shape) == 1 else ""

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (self.diff,)

    def change(self) -> Difference:
        """Read it."""
        return Difference(read_finite(self.diff).reshape(self.out_features, -1))
