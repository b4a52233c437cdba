"""PaRa: the output directions that a layer loses, ``W - Q Q^T W`` (the paper's equation 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paramerge.adapters.contract import DependentModule, read_finite
from paramerge.algebra import orthonormalise, storage_tolerance
from paramerge.checkpoints.dtypes import NUMPY
from paramerge.checkpoints.modules import ModuleName
from paramerge.checkpoints.tensors import StoredTensor

__all__ = ["ParaModule"]


@dataclass(frozen=True)
class ParaModule(DependentModule):
    """One layer of a PaRa, still in its file.

    Attributes
    ----------
    basis:
        B: (d, r), one column for each direction. Only its span counts: the layer's Q comes from
        orthonormalising it, whether or not its columns were orthonormal when it was saved.
    """

    name: ModuleName
    basis: StoredTensor
    family: str = "para"

    @property
    def rank(self) -> int:
        """The number of directions r that the file holds; dependent columns are not looked for here."""
        return self.basis.shape[1]

    @property
    def out_features(self) -> int:
        """Rows d of the weight that it reduces."""
        return self.basis.shape[0]

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensors in the file."""
        return (self.basis,)

    @property
    def in_features(self) -> None:
        return None

    @property
    def rank_bound(self) -> int:
        """No more than r directions go."""
        return min(self.rank, self.out_features)

    def transform(self, W: np.ndarray) -> np.ndarray:
        """``W - Q Q^T W``."""
        cut = storage_tolerance(NUMPY[self.basis.dtype].name, self.rank)
        Q = orthonormalise(read_finite(self.basis), rtol=cut).Q
        return np.asarray(W - Q @ (Q.T @ W))
