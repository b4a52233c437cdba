"""One layer of an adapter as the tensors that a format will hold, still without their keys.

Tensors are passed on bit for bit wherever the format has the same ones. Where it has not, the same change is
written otherwise (an alpha folded into the factors, a Tucker core contracted): computed in float64, rounded
once, and noted in the part's ``notes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from paramerge.adapters.contract import LayerModule
from paramerge.adapters.rounding import rounded
from paramerge.files.dtypes import NUMPY
from paramerge.models.names import ModuleName

KOHYA = "kohya"
"""The format of files with kohya's names, LyCORIS's among them."""


@dataclass(frozen=True)
class Part:
    """The tensors of one layer, by their roles.

    Attributes
    ----------
    name:
        The layer; of a norm, without ``.weight``.
    alpha:
        The alpha that the format will state; None where it says nothing (scale 1).
    rounding:
        The rounding error of a change that had to be written otherwise, relative to it; else 0.
    truncation:
        The part of the change that a lower rank misses, relative to it; else 0.
    """

    name: ModuleName
    family: str
    tensors: Mapping[str, np.ndarray]
    alpha: float | None = None
    rank: int = 0
    rounding: float = 0.0
    truncation: float = 0.0
    notes: tuple[str, ...] = ()


PartOf = Callable[[LayerModule, str, str | None], Part | None]
"""The part of a module for a format, by its name; a changed form is rounded to a dtype (None: the module's).
None where the format does not hold this form of the family."""

NAMES_ALONE: Mapping[str, PartOf | None] = {KOHYA: None}
"""For a family that files with kohya's names hold, and that has no other form to come from."""


def cast(part: Part, dtype: str | None) -> Part:
    """The part with its tensors, but for an alpha, rounded to ``dtype``; None leaves them.

    Raises
    ------
    NonFiniteError
        A number beyond the range of ``dtype``.
    """
    if dtype is None:
        return part
    wanted = NUMPY[dtype]
    tensors = {
        role: value if role == "alpha" or value.dtype == wanted else rounded(part.name, value, dtype)
        for role, value in part.tensors.items()
    }
    return replace(part, tensors=tensors)
