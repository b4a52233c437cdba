"""Whole differences of a layer's weight, a bias, a norm's weight (``diff``, ``diff_b``, ``w_norm``), and new
weights in place of the base's (``set_weight``)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paramerge.adapters.changes import Difference
from paramerge.adapters.contract import AdditiveModule, DependentModule, read_finite
from paramerge.adapters.family import VECTOR, Family, Form
from paramerge.adapters.group import Group
from paramerge.adapters.parts import NAMES_ALONE
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class DifferenceModule(AdditiveModule):
    """``W + diff``.

    Attributes
    ----------
    diff:
        In the weight's own shape; (n,) for a bias or a norm's weight.
    family:
        ``full``, or ``norm`` for what LyCORIS trains of norms.
    factor:
        The scale of a difference that is trained beside a LoRA's factors: of PEFT's ``lora_B.bias``.
    """

    name: ModuleName
    diff: StoredTensor
    family: str = "full"
    factor: float = 1.0

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

    def change(self) -> Difference:
        """Read it."""
        return Difference(self.factor * read_finite(self.diff).reshape(self.out_features, -1))


@dataclass(frozen=True)
class WholeModule(DependentModule):
    """``W' = whole``: a weight, a norm or a head that takes the place of the base's.

    Attributes
    ----------
    whole:
        In the weight's own shape.
    """

    name: ModuleName
    whole: StoredTensor
    family: str = "full"

    @property
    def rank(self) -> int:
        """The full rank of its shape."""
        return min(self.out_features, self.in_features)

    @property
    def out_features(self) -> int:
        return self.whole.shape[0]

    @property
    def in_features(self) -> int:
        return math.prod(self.whole.shape[1:])

    @property
    def form(self) -> str:
        return "whole weight"

    def transform(self, W: np.ndarray) -> np.ndarray:
        """The new weight, as a matrix."""
        return read_finite(self.whole).reshape(W.shape)


def _build(group: Group, rules: Rules) -> Iterator[DifferenceModule | WholeModule]:
    if whole := group.take("whole"):
        yield WholeModule(group.weight if len(whole.shape) == 1 else group.parameter, whole)
    if whole := group.take("whole_b"):
        yield WholeModule(group.bias, whole)
    if modulation := group.take("diff_m"):
        yield DifferenceModule(ModuleName(group.name.component, f"{group.name.path}.modulation"), modulation)
    if diff := group.take("diff"):
        # a vector is a norm's, also in models whose norms are not known by their names
        yield DifferenceModule(group.weight if len(diff.shape) == 1 else group.parameter, diff)
    if bias := group.take("diff_b"):
        yield DifferenceModule(group.bias, bias)


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return math.prod(shape)


FAMILY = Family(
    key="full",
    label="full difference",
    formula="W + diff, b + diff_b; whole in place of W",
    forms=(
        Form(
            "full difference",
            {
                "diff": "diff",
                "diff_b": "diff_b",
                "diff_m": "diff_m",
                "set_weight": "whole",
                "set_bias": "whole_b",
            },
            _build,
            {"diff_b": VECTOR, "whole_b": VECTOR},
            beside=frozenset({"diff_b", "diff_m"}),
        ),
    ),
    stored=_stored,
    counted="",
    parts=NAMES_ALONE,
)
