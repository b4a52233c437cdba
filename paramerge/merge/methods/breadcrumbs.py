"""Breadcrumbs: neither the largest differences nor the smallest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from paramerge.merge.methods.differences import added, first_where_nothing_is_added
from paramerge.merge.methods.method import Cuts, Method
from paramerge.merge.methods.parameters import Density, Each, Signs, Strength, Within

if TYPE_CHECKING:
    import torch

Outliers = Annotated[float, Within(0, 1, "the share of the largest differences that is left out")]


def breadcrumbs(
    models: list[torch.Tensor],
    cuts: Cuts,
    *,
    weights: Each = (),
    density: Density = 0.9,
    outliers: Outliers = 0.01,
    strength: Strength = 1.0,
    signs: Signs = "all",
) -> torch.Tensor:
    """Breadcrumbs: ``m0 + s sum w_i k_i (m_i - m0)``, where ``k_i`` is 0 for the largest and the smallest.

    Of each tensor the ``outliers`` largest differences are left out, of the others the ``density`` (of all)
    largest are kept. With ``signs`` "elect" they are merged as by ties.
    """

    def masked(difference: torch.Tensor, model: int) -> torch.Tensor:
        top, least = cuts[model - 1]
        magnitudes = difference.abs()
        return difference.mul_((magnitudes >= least) & (magnitudes < top))

    return added(models, masked, weights, strength, signs)


def _cuts(size: int, *, density: float, outliers: float, **_: object) -> tuple[int, int]:
    top = round(outliers * size)
    return top, min(size, top + round(density * size))


BREADCRUMBS = Method(
    "breadcrumbs",
    breadcrumbs,
    "cuts",
    (2, None),
    "Davari and Belilovsky 2023, arXiv:2312.06795",
    first_where_nothing_is_added,
    cuts=_cuts,
)
