"""Whole differences of a layer's weight, a bias, a norm's weight (``diff``, ``diff_b``, ``w_norm``)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from paramerge.adapters.changes import Difference
from paramerge.adapters.contract import AdditiveModule, read_finite
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

    def change(self) -> Difference:
        """Read it."""
        return Difference(read_finite(self.diff).reshape(self.out_features, -1))


def _build(group: Group, rules: Rules) -> Iterator[DifferenceModule]:
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
    formula="W + diff, b + diff_b",
    forms=(
        Form(
            "full difference",
            {"diff": "diff", "diff_b": "diff_b"},
            _build,
            {"diff_b": VECTOR},
            beside=frozenset({"diff_b"}),
        ),
    ),
    stored=_stored,
    counted="",
    parts=NAMES_ALONE,
)
