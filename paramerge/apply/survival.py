"""The part of each step's change that the written values carry, measured where both are at hand.

With ``W_i`` the weight after step ``i``, ``d_i = W_i - W_(i-1)`` the step's change, ``Y`` what is written
after the last step ``n`` and ``E = Y - W_n`` the error of rounding, the survival of step ``i`` is

    s_i = <Y - (W_n - d_i), d_i> / <d_i, d_i> = 1 + <E, d_i> / <d_i, d_i>

the projection of what is written, less the other steps, onto the step's change: for a single step
``<Y - W_0, d> / <d, d>``. It is 1 where the change is there on average, 0 where nothing of it is. The error
of a layer is ``||E||_F / ||W_n - W_0||_F``.

A PaRa of directions that the weight lacks already, but for the rounding of its dtype, changes nothing.

Large layers are sampled (:mod:`paramerge.apply.sampling`), in the same places whatever the threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from paramerge.apply.sampling import Grid

_ELEMENTS = {"F16": 1 << 16, "BF16": 1 << 16, "F8_E4M3": 1 << 18, "F8_E5M2": 1 << 18, "I8": 1 << 18}
"""Elements of a layer that are looked at, by what is written; the coarser, the more there is to average."""

_ELEMENTS_OF_EXACT = 1 << 14

_TINY = 2.0**-24
"""Energy of a change relative to the weight's, below which float32's sum of both has lost digits of it."""

SURE = 2.0
"""Standard deviations of a sample that are stated as its error."""


@dataclass(frozen=True, slots=True)
class Share:
    """One operation's change of a layer, and how much of it is written; sums are those of the whole layer.

    Attributes
    ----------
    steps:
        The places of its steps: those of PaRas that are merged jointly are several.
    carried:
        ``<Y - (W_n - d), d>``.
    change:
        ``<d, d>``.
    moments:
        Variances of ``carried - change`` and of ``change``, and between them their covariance, as the sample
        tells; zeros where every element was looked at.
    """

    steps: tuple[int, ...]
    carried: float
    change: float
    moments: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class LayerSurvival:
    """The survival of every operation on one layer.

    Attributes
    ----------
    dtype:
        Of what is written.
    sampled:
        The share of the elements that was looked at; 1 for all.
    lost:
        ``||E||_F^2`` over the layer.
    change:
        ``||W_n - W_0||_F^2``.
    """

    layer: str
    dtype: str
    shares: tuple[Share, ...]
    sampled: float
    lost: float
    change: float

    @property
    def error(self) -> float | None:
        """The error relative to the layer's change; None where nothing changes."""
        return math.sqrt(self.lost / self.change) if self.change else None

    @property
    def lowest(self) -> float | None:
        """The smallest survival of an operation; None where none changes anything."""
        found = [ratio for share in self.shares if (ratio := pooled([share])[0]) is not None]
        return min(found, default=None)


def pooled(shares: Iterable[Share]) -> tuple[float | None, float]:
    """The survival over several layers, each weighted by ``<d, d>``, and the error of its sample.

    None, and 0, where nothing changes.
    """
    found = list(shares)
    change = math.fsum(share.change for share in found)
    if not change:
        return None, 0.0
    ratio = math.fsum(share.carried for share in found) / change
    rest = 1 - ratio  # carried - ratio * change = (carried - change) + rest * change
    spread = math.fsum(a + 2 * rest * ab + rest * rest * b for a, ab, b in (s.moments for s in found))
    return ratio, SURE * math.sqrt(max(spread, 0.0)) / change


def grid_of(rows: int, columns: int, dtype: str) -> Grid:
    """The sample of a layer that is written as ``dtype``."""
    return Grid.of(rows, columns, _ELEMENTS.get(dtype, _ELEMENTS_OF_EXACT))


ChangesOf = Callable[[Grid], Sequence[torch.Tensor]]
"""By operation, the sample of its change of the rows as they are stored, float64."""


class Probe:
    """Compares what is written of one layer with what was meant, in blocks of rows. For one thread.

    Parameters
    ----------
    name:
        The layer.
    steps:
        By operation, the places of its steps.
    floors:
        By operation, the energy of a change, relative to the weight's, up to which it is none.
    place:
        The layer's first row in the tensor that it is stored in, its rows, and its columns.
    dtype:
        Of what is written, as safetensors names it.
    compute:
        Of the arithmetic.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[tuple[int, ...]],
        floors: Sequence[float],
        place: tuple[int, int, int],
        dtype: str,
        compute: torch.dtype,
    ) -> None:
        self._name, self._dtype = name, dtype
        self._steps, self._floors = steps, floors
        self._first, rows, columns = place
        self.grid = grid_of(rows, columns, dtype)
        self._compute = compute
        self._taken: list[torch.Tensor] = []

    def before(self, block: torch.Tensor, row: int) -> None:
        """See ``block``, which begins at ``row`` of the tensor, before any step."""
        if not self._taken:
            shape = (self.grid.rows, self.grid.width)
            self._taken = [torch.zeros(shape, dtype=self._compute) for _ in range(3)]
        self.grid.take(block, row - self._first, self._taken[0])

    def after(self, exact: torch.Tensor, written: torch.Tensor, row: int) -> None:
        """See the values that were meant for the same rows, and what was written of them."""
        self.grid.take(exact, row - self._first, self._taken[1])
        self.grid.take(written, row - self._first, self._taken[2])

    def result(self, changes: ChangesOf) -> LayerSurvival | None:
        """The layer's figures; None where no row came by."""
        if not self._taken:
            return None
        before, meant, written = (part.view(-1) for part in self._taken)
        whole = meant - before
        if len(self._steps) == 1 and _product(whole, whole) >= _TINY * _product(before, before):
            parts: Sequence[torch.Tensor] = [whole]
            error = written - meant
        else:  # from the factors: of small changes little is left in a sum with the weight
            parts = [part.reshape(-1) for part in changes(self.grid)]
            whole = sum(parts[1:], parts[0])
            error = written.to(torch.float64) - before.to(torch.float64) - whole
        self._taken = []
        scale = self.grid.scale
        weight = scale * _product(before, before)
        shares = (
            share if share.change > floor * weight else Share(steps, 0.0, 0.0)
            for steps, part, floor in zip(self._steps, parts, self._floors, strict=True)
            for share in [_share(steps, part, error, scale)]
        )
        lost, change = scale * _product(error, error), scale * _product(whole, whole)
        return LayerSurvival(self._name, self._dtype, tuple(shares), 1 / scale, lost, change)


def _share(steps: tuple[int, ...], part: torch.Tensor, error: torch.Tensor, scale: float) -> Share:
    """The sums of one operation: of the sample's, as those of the whole layer."""
    size, more = part * part, part * error
    sums = [float(values.sum(dtype=torch.float64)) for values in (more, size)]
    change, carried = scale * sums[1], scale * (sums[0] + sums[1])
    if scale == 1:
        return Share(steps, carried, change)
    count, factor = len(part), scale * (scale - 1)
    moments = [
        factor * max(_product(one, other) - a * b / count, 0.0 if one is other else -math.inf)
        for one, a, other, b in (
            (more, sums[0], more, sums[0]),
            (more, sums[0], size, sums[1]),
            (size, sums[1], size, sums[1]),
        )
    ]
    return Share(steps, carried, change, (moments[0], moments[1], moments[2]))


def _product(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.dot(one, other))
