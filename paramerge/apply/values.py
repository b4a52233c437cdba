"""Values of an output's tensor other than the base's own: the contract between rooms.

:mod:`paramerge.merge.checkpoints` computes such values from several checkpoints; the kernel applies the steps
to them and rounds once, as it does with a weight that was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # planning needs no torch
    import torch

    from paramerge.apply.kernel import Blocks


class OpenValues(Protocol):
    """Values that can be computed now. For one thread."""

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of the tensor as a matrix; valid until the next call, free to change."""

    def refuse_non_finite(self, start: int, stop: int) -> None:
        """Raise NonFiniteError if what those rows are made of is not finite."""


class Values(Protocol):
    """A tensor's values, known from headers."""

    @property
    def dtypes(self) -> frozenset[str]:
        """The dtypes of what they are made of."""

    def open(self, blocks: Blocks, compute: torch.dtype) -> OpenValues:
        """Values in ``compute``, with scratch of ``blocks``."""
