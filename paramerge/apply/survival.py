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

_ELEMENTS = {"F16": 1 << 14, "BF16": 1 << 15, "F8_E4M3": 1 << 18, "F8_E5M2": 1 << 18, "I8": 1 << 18}
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
    """Compares what is written of one layer with what was meant, in runs of rows. For one thread.

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
        self._taken: dict[str, torch.Tensor] = {}

    def before(self, rows: torch.Tensor, row: int) -> None:
        """See rows of the layer, from ``row`` of the tensor on, before any step."""
        self._take("before", rows, row)

    def meant(self, rows: torch.Tensor, row: int) -> None:
        """See the same rows after the last step, exact; only where that is less work than the parts."""
        self._take("meant", rows, row)

    def after(self, rows: torch.Tensor, row: int) -> None:
        """See what was written of the same rows."""
        self._take("written", rows, row)

    def result(self, changes: ChangesOf) -> LayerSurvival | None:
        """The layer's figures; None where no row came by."""
        if "written" not in self._taken:
            return None
        before, written = (self._taken[name].view(-1) for name in ("before", "written"))
        parts, error = self._parts(before, written, changes)
        self._taken.clear()
        whole = parts[0] if len(parts) == 1 else sum(parts[1:], parts[0])
        scale, weight = self.grid.scale, _product(before, before) if any(self._floors) else 0.0
        shares = tuple(
            _share(steps, part, error, scale, floor * weight)
            for steps, part, floor in zip(self._steps, parts, self._floors, strict=True)
        )
        lost, change = scale * _product(error, error), scale * _product(whole, whole)
        return LayerSurvival(self._name, self._dtype, shares, 1 / scale, lost, change)

    def _parts(
        self, before: torch.Tensor, written: torch.Tensor, changes: ChangesOf
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Each operation's change, and the error of what is written; of the sample."""
        if "meant" in self._taken:
            meant = self._taken["meant"].view(-1)
            whole = meant - before
            if _product(whole, whole) >= _TINY * _product(before, before):
                return [whole], written - meant
        parts = [part.to(self._compute).reshape(-1) for part in changes(self.grid)]
        error = written - before
        for part in parts:
            error -= part
        return parts, error

    def _take(self, name: str, rows: torch.Tensor, row: int) -> None:
        if name not in self._taken:
            self._taken[name] = torch.zeros((self.grid.rows, self.grid.width), dtype=self._compute)
        self.grid.take(rows, row - self._first, self._taken[name])


def _share(
    steps: tuple[int, ...], part: torch.Tensor, error: torch.Tensor, scale: float, floor: float
) -> Share:
    """The sums of one operation: those of the sample, as those of the whole layer."""
    size, more = _product(part, part), _product(part, error)
    if size <= floor:
        return Share(steps, 0.0, 0.0)
    change, carried = scale * size, scale * (size + more)
    if scale == 1:
        return Share(steps, carried, change)
    squares, products = part * part, part * error
    count, factor = len(part), scale * (scale - 1)
    moments = (
        factor * max(_product(products, products) - more * more / count, 0.0),
        factor * (_product(products, squares) - more * size / count),
        factor * max(_product(squares, squares) - size * size / count, 0.0),
    )
    return Share(steps, carried, change, moments)


def _product(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.dot(one, other))
