"""The contract of every family's layer, on which planning, baking and inspecting rely.

A module says how one weight changes. Weights are matrices ``(d, k)``, rows are output features, a convolution
is flattened to ``(out, in * kh * kw)``, a norm's weight or a bias is a column ``(n, 1)``. All results are
float64 NumPy arrays.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from paramerge.adapters.changes import Change, Rows
from paramerge.errors import NonFiniteError
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


class LayerModule(ABC):
    """One layer of an adapter, still in its file: ``W -> W'``.

    Attributes
    ----------
    family:
        The key of its :class:`~paramerge.adapters.family.Family`.
    depends_on_weight:
        Whether ``W' - W`` depends on ``W``: such a module acts on the weight as it is at its step.
    copies:
        Matrices of the weight's size, at most, that there are while :meth:`apply` works.
    """

    family: str
    depends_on_weight: ClassVar[bool]
    copies: ClassVar[int] = 4
    name: ModuleName
    alpha_key: str | None = None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensors in the file: those of its fields that are such, in their order."""
        return tuple(value for value in vars(self).values() if isinstance(value, StoredTensor))

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of the file that belong to this layer."""
        own = tuple(tensor.key for tensor in self.tensors)
        return own if self.alpha_key is None else (*own, self.alpha_key)

    @property
    def dtype(self) -> str:
        """The dtype it is stored in, by the header's name."""
        return self.tensors[0].dtype

    @property
    @abstractmethod
    def rank(self) -> int:
        """The number that its family counts: the rank of factors, the size of blocks, singular values."""

    @property
    def out_features(self) -> int | None:
        """Rows of the weight that it changes; None where the file leaves it open."""
        return None

    @property
    def in_features(self) -> int | None:
        """Columns of the weight, a convolution flattened; None where the file leaves it open."""
        return None

    @property
    def rank_bound(self) -> int | None:
        """The most that ``rank(W' - W)`` can be; None where the file alone does not tell."""
        return min((size for size in (self.out_features, self.in_features) if size is not None), default=None)

    @property
    def scale(self) -> float | None:
        """The factor on the product of the low-rank factors; None for a family without one."""
        return None

    @property
    def form(self) -> str:
        """The form of the change within its family, in a few words; empty where there is one form only."""
        return ""

    @property
    def optional(self) -> bool:
        """Whether the base may lack this parameter (a bias that is scaled along with its layer)."""
        return False

    @property
    def is_cut(self) -> bool:
        """Whether it is a part of the rows that its keys hold."""
        return False

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of ``shape`` (as stored, not flattened) is one that it can change."""
        rows, columns = shape[0], math.prod(shape[1:])
        return self.out_features in (None, rows) and self.in_features in (None, columns)

    def misfit(self, shape: tuple[int, ...]) -> tuple[str, str]:
        """The size expected and the size found, in words, where :meth:`fits` says no."""
        rows, columns = shape[0], math.prod(shape[1:])
        sizes = (self.out_features, self.in_features)
        if sizes in ((rows, columns), (None, None)):
            tensors = " and ".join(f"{tensor.key} {list(tensor.shape)}" for tensor in self.tensors)
            return f"tensors for a weight of {list(shape)}", tensors
        count = 2 if sizes[1] else 1
        found = ["any" if size is None else str(size) for size in sizes[:count]]
        return " x ".join(map(str, (rows, columns)[:count])), " x ".join(found)

    def part(self, name: ModuleName, runs: tuple[tuple[int, int], ...]) -> LayerModule | None:
        """The change of the runs ``(start, stop)`` of its rows, in this order, as that of the layer ``name``.

        None where the change of a row depends on the others.
        """
        return None

    def renamed(self, name: ModuleName) -> Self:
        """The same change of the layer ``name``."""
        return replace(self, name=name)  # type: ignore[type-var]

    @abstractmethod
    def transform(self, W: np.ndarray) -> np.ndarray:
        """``W'`` for ``W`` (d, k) float64, at strength 1.

        Raises
        ------
        NonFiniteError
            NaN or Inf in a tensor of the adapter.
        """

    def apply(self, W: np.ndarray, strength: float = 1.0) -> np.ndarray:
        """``W + strength * (W' - W)``, as user interfaces define a strength for every family."""
        if strength == 1:
            return self.transform(W)
        return np.asarray(W + strength * (self.transform(W) - W))

    def delta(self, W: np.ndarray) -> np.ndarray:
        """``W' - W`` at strength 1."""
        return np.asarray(self.transform(W) - W)

    def norm(self) -> float | None:
        """``||W' - W||``, Frobenius; None where it depends on the weight."""
        return None


class AdditiveModule(LayerModule):
    """A family that adds the same to every weight."""

    depends_on_weight = False

    @property
    @abstractmethod
    def rank_bound(self) -> int:
        """The most that the rank of the change can be."""

    @abstractmethod
    def change(self) -> Change:
        """The change at strength 1, read from the file; its rows are made when asked for.

        Raises
        ------
        NonFiniteError
            NaN or Inf in a tensor of the adapter.
        """

    def part(self, name: ModuleName, runs: tuple[tuple[int, int], ...]) -> AdditiveModule:
        """The change of these rows alone."""
        return RowsModule(name, self, runs)

    def transform(self, W: np.ndarray) -> np.ndarray:
        """``W`` and the change together."""
        return np.asarray(W + self.change().whole())

    def delta(self, W: np.ndarray | None = None) -> np.ndarray:
        """The change (d, k); ``W`` makes no difference."""
        return self.change().whole()

    def apply(self, W: np.ndarray, strength: float = 1.0) -> np.ndarray:
        """``W + strength * change``."""
        return np.asarray(W + strength * self.change().whole())

    def norm(self) -> float:
        """``||change||``, Frobenius; NaN where a tensor is not finite."""
        try:
            return self.change().norm()
        except NonFiniteError:
            return math.nan


@dataclass(frozen=True)
class RowsModule(AdditiveModule):
    """Some rows of another module's change, for one of the layers that share that module.

    Attributes
    ----------
    of:
        The module on all rows, such as stacked projections.
    runs:
        The runs ``(start, stop)`` of its rows that are this layer's, in this layer's order.
    """

    name: ModuleName
    of: AdditiveModule
    runs: tuple[tuple[int, int], ...]

    @property
    def family(self) -> str:  # type: ignore[override]
        """The other module's."""
        return self.of.family

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.of.tensors

    @property
    def keys(self) -> tuple[str, ...]:
        return self.of.keys

    @property
    def rank(self) -> int:
        """The other module's."""
        return self.of.rank

    @property
    def rank_bound(self) -> int:
        return min(self.of.rank_bound, self.out_features)

    @property
    def out_features(self) -> int:
        return sum(stop - start for start, stop in self.runs)

    @property
    def in_features(self) -> int | None:
        return self.of.in_features

    @property
    def scale(self) -> float | None:
        """The other module's."""
        return self.of.scale

    @property
    def form(self) -> str:
        return self.of.form

    @property
    def is_cut(self) -> bool:
        return True

    def change(self) -> Rows:
        """The other module's change, of these rows alone."""
        return Rows(self.of.change(), self.runs)


class DependentModule(LayerModule):
    """A family whose change depends on the weight."""

    depends_on_weight = True


def read_finite(tensor: StoredTensor) -> np.ndarray:
    """The tensor in float64.

    Raises
    ------
    NonFiniteError
        NaN or Inf.
    FileFormatError
        The file changed while it was open.
    """
    return read_stored(tensor).astype(np.float64)


def read_stored(tensor: StoredTensor) -> np.ndarray:
    """The tensor in its own dtype; every family and verb reads an adapter's numbers here.

    Raises
    ------
    NonFiniteError
        NaN or Inf.
    FileFormatError
        The file changed while it was open.
    """
    values = tensor.read()
    if not _all_finite(values):
        raise NonFiniteError(
            "the adapter holds NaN or Inf",
            where=f"{tensor.path}: {tensor.key}",
            hint="its training diverged: use an earlier checkpoint of it",
        )
    return values


def in_order(values: np.ndarray, rows: tuple[tuple[int, int], ...] | None) -> np.ndarray:
    """The runs ``(start, stop)`` of ``values``, one after the other; all of it where ``rows`` is None."""
    return values if rows is None else np.concatenate([values[start:stop] for start, stop in rows])


def _all_finite(values: np.ndarray) -> bool:
    if not values.size or values.dtype.kind in "biu":
        return True
    if values.dtype.kind == "f":  # NaN wins in both; far quicker than looking at each element
        return bool(np.isfinite(values.min()) and np.isfinite(values.max()))
    return bool(np.isfinite(values).all())
