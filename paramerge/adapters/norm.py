"""Norms as LyCORIS trains them: differences of the weight and the bias."""

from __future__ import annotations

from collections.abc import Iterator

from paramerge.adapters.family import VECTOR, Family, Form
from paramerge.adapters.full import DifferenceModule
from paramerge.adapters.group import Group
from paramerge.adapters.parts import NAMES_ALONE
from paramerge.adapters.rules import Rules


def _build(group: Group, rules: Rules) -> Iterator[DifferenceModule]:
    weight, bias = group.need("w_norm"), group.take("b_norm")
    yield DifferenceModule(group.weight, weight, "norm")
    if bias is not None:
        yield DifferenceModule(group.bias, bias, "norm")


FAMILY = Family(
    key="norm",
    label="norm",
    formula="w + w_norm, b + b_norm",
    forms=(
        Form(
            "norm",
            {"w_norm": "w_norm", "b_norm": "b_norm"},
            _build,
            {"w_norm": VECTOR, "b_norm": VECTOR},
        ),
    ),
    counted="",
    parts=NAMES_ALONE,
)
