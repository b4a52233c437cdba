"""The true values of a quantised weight in the place of a stored tensor's, for the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paramerge.errors import NonFiniteError
from paramerge.storage.quantised import Quantised
from paramerge.storage.scales import matrix_of
from paramerge.storage.tensor import TRUE_DTYPE

if TYPE_CHECKING:
    import torch

    from paramerge.apply.kernel import Blocks
    from paramerge.apply.values import OpenValues


@dataclass(frozen=True)
class TrueValues:
    """The values of one layer (see :class:`paramerge.apply.values.Values`)."""

    layer: Quantised

    @property
    def dtypes(self) -> frozenset[str]:
        """A dtype whose arithmetic is in float64, as that of 8 bits times a float32 must be."""
        return frozenset({TRUE_DTYPE})

    def open(self, blocks: Blocks, compute: torch.dtype) -> OpenValues:
        """Open for reading (:meth:`paramerge.apply.values.Values.open`)."""
        return _Open(self.layer, blocks, compute)


class _Open:
    def __init__(self, layer: Quantised, blocks: Blocks, compute: torch.dtype) -> None:
        self._layer, self._blocks, self._compute = layer, blocks, compute
        self._codes = layer.open()
        self._columns = matrix_of(layer.shape or ())[1]

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop``; valid until the next call, free to change."""
        block = self._blocks.scratch(0, (stop - start, self._columns), self._compute)
        self._codes.read(start, stop, block)
        return block

    def refuse_non_finite(self, start: int, stop: int) -> None:
        """Raise if the codes of those rows are no numbers."""
        import torch

        if not bool(torch.isfinite(self.block(start, stop)).all()):
            raise NonFiniteError(
                "a quantised layer holds NaN or Inf",
                where=self._layer.layer.where,
                expected="codes of finite numbers",
                found=f"others within rows {start} to {stop - 1}",
                hint="take the checkpoint from its source again; nothing was written",
            )
