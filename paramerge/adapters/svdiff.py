"""SVDiff: the singular values of a weight shifted, ``U max(S + s delta, 0) V^T``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paramerge.adapters.contract import DependentModule, read_finite
from paramerge.adapters.family import VECTOR, Family, Form
from paramerge.adapters.group import Group
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings, sides
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class SvdiffModule(DependentModule):
    """One parameter of an SVDiff, of a layer, a norm or an embedding.

    Attributes
    ----------
    shift:
        (min(d, k),), in the order of falling singular values; (1,) for a norm's weight, whose only singular
        value is its length.
    """

    name: ModuleName
    shift: StoredTensor
    family: str = "svdiff"
    copies: ClassVar[int] = 7

    @property
    def rank(self) -> int:
        """The number of singular values that are shifted."""
        return self.shift.shape[0]

    @property
    def rank_bound(self) -> int:
        return self.rank

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether there is one number for each singular value."""
        return self.rank == min(shape[0], math.prod(shape[1:]))

    def misfit(self, shape: tuple[int, ...]) -> tuple[str, str]:
        """The shifts expected and found, in words."""
        return f"one number for each of {min(shape[0], math.prod(shape[1:]))} singular values", (
            f"{self.rank} numbers"
        )

    def transform(self, W: np.ndarray) -> np.ndarray:
        """All of the shift."""
        return self.apply(W)

    def apply(self, W: np.ndarray, strength: float = 1.0) -> np.ndarray:
        """Scale the shift by ``strength``, as the published code does, before negative values are cut off."""
        values = read_finite(self.shift)
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        change = np.maximum(S + strength * values, 0.0) - S
        return np.asarray(W + (U * change) @ Vt)


def _build(group: Group, rules: Rules) -> Iterator[SvdiffModule]:
    yield SvdiffModule(group.parameter, group.need("delta"))


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return min(sides(shape))


FAMILY = Family(
    key="svdiff",
    label="SVDiff",
    formula="U max(S + delta, 0) V^T",
    forms=(Form("SVDiff", {"delta": "delta"}, _build, {"delta": VECTOR}),),
    stored=_stored,
    counted="singular values",
)
