"""One rounding from the compute dtype into the output's.

torch (as NumPy's ``ml_dtypes``) takes float64 to float32 first and then to 16 or 8 bits. Where the first
rounding lands in the middle between two numbers of the output, the second no longer knows on which side the
value lay. Those few values, one in 65,536 for BF16, are brought to the side on which they were.
"""

from __future__ import annotations

import numpy as np
import torch

_MIDDLE_OF_BF16 = -(1 << 15)
"""The lower half of a float32's bits, as int16, in the middle between two numbers of BF16."""


class Rounder:
    """Rounds blocks to nearest, once; keeps its work areas from block to block. One per worker."""

    def __init__(self) -> None:
        self._single = torch.empty(0, dtype=torch.float32)
        self._found = np.empty(0, np.bool_)

    def put(self, values: torch.Tensor, target: torch.Tensor) -> None:
        """Round ``values`` (float32 or float64, contiguous) into ``target``, of the same shape."""
        if values.dtype != torch.float64 or target.dtype in (torch.float64, torch.float32):
            target.copy_(values)
            return
        count = values.numel()
        if len(self._single) < count:
            self._single, self._found = torch.empty(count, dtype=torch.float32), np.empty(2 * count, np.bool_)
        single = self._single[:count].copy_(values.view(-1))
        exact, near = values.view(-1).numpy(), single.numpy()
        if target.dtype == torch.bfloat16:
            found = np.equal(near.view(np.int16), _MIDDLE_OF_BF16, out=self._found[: 2 * count])
            places = np.flatnonzero(found)
            places = places[places % 2 == 0] // 2  # little-endian: the lower half comes first
            near[places] = _to_odd(exact[places], near[places])
        else:
            near[:] = _to_odd(exact, near)
        target.copy_(single.view(target.shape))


def _to_odd(exact: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """``exact`` (float64) as float32 that round further as it does: an inexact one has an odd last bit.

    ``nearest`` is the nearest float32 of each. An odd last bit lies in the middle of nothing coarser.
    """
    back = nearest.astype(np.float64)
    inexact = (back != exact) & np.isfinite(back)
    outward = inexact & (np.abs(back) > np.abs(exact))
    bits = nearest.view(np.int32) - outward  # one step towards zero, the part that rounding to odd cuts off
    return np.asarray((bits.astype(np.int32) | inexact).view(np.float32))
