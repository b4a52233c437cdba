"""The container of a PaRa layer's bases."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Hoisted(dict[str, tuple[Tensor, int, Tensor]]):
    """Bases made before the step: B, its version at that time, K. A copy of the layer has none.

    They belong to a graph of autograd's, which can be neither copied nor stored.
    """

    def __deepcopy__(self, memo: object) -> Hoisted:
        return Hoisted()

    def __reduce__(self) -> tuple[type[Hoisted], tuple[()]]:
        return Hoisted, ()


class WideParameters(nn.ParameterDict):
    """Parameters that stay float32 or better when the model around them is cast to half precision."""

    def _apply(self, fn: Any, recurse: bool = True) -> WideParameters:
        def keep_wide(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            narrowed = moved.is_floating_point() and moved.dtype.itemsize < tensor.dtype.itemsize
            return tensor.to(moved.device) if narrowed and moved.dtype.itemsize < 4 else moved

        super()._apply(keep_wide, recurse)  # type: ignore[no-untyped-call]
        return self
