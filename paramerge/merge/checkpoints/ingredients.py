"""The ingredients of a tensor of a merged checkpoint: stored rows, and the methods that merge. Plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paramerge.files.tensors import StoredTensor
from paramerge.merge.methods.method import Method

if TYPE_CHECKING:
    import torch

    from paramerge.apply.kernel import Blocks
    from paramerge.apply.values import OpenValues


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a stored tensor, and which rows of the output's they are."""

    start: int
    """The first row of the output's tensor that it gives, and the one behind its last."""
    stop: int
    tensor: StoredTensor
    first: int = 0
    """The row of the stored tensor (of its transpose, if it is stored so) that it begins with."""
    transposed: bool = False

    @property
    def columns(self) -> int:
        """Number of columns of its rows."""
        shape = self.tensor.shape
        if self.transposed:
            return shape[0]
        return math.prod(shape[1:]) if len(shape) > 1 else 1


@dataclass(frozen=True, slots=True)
class Rows:
    """A model's tensor, in the output's rows."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A method's result of several tensors; the same object may be an ingredient of several others."""

    name: str
    """The output's tensor by the name of its layers, on which random choices depend."""
    method: Method
    parameters: Mapping[str, object]
    ingredients: tuple[Ingredient, ...]


Ingredient = Rows | Merged


@dataclass(frozen=True, eq=False)
class MergedValues:
    """The values of one tensor of the output (see :class:`paramerge.apply.values.Values`)."""

    made_of: Ingredient
    shape: tuple[int, int]
    """Rows and columns, as :func:`paramerge.apply.tensor_plan.matrix_shape` has them."""

    @property
    def dtypes(self) -> frozenset[str]:
        """The dtypes of all tensors that it is made of."""
        return frozenset(tensor.dtype for tensor in stored_tensors(self.made_of))

    def open(self, blocks: Blocks, compute: torch.dtype) -> OpenValues:
        """Open for reading (:meth:`paramerge.apply.values.Values.open`)."""
        from paramerge.merge.checkpoints.evaluation import Evaluation

        return Evaluation(self, blocks, compute)


def stored_tensors(ingredient: Ingredient) -> Iterator[StoredTensor]:
    """Every stored tensor that it is made of."""
    if isinstance(ingredient, Rows):
        yield from (piece.tensor for piece in ingredient.pieces)
        return
    for part in ingredient.ingredients:
        yield from stored_tensors(part)
