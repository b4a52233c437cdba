"""PaRa: the output directions that a layer loses, ``W - Q Q^T W`` (the paper's equation 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paramerge.adapters.contract import DependentModule, LayerModule, in_order, read_finite, read_stored
from paramerge.adapters.family import MATRIX, Family, Form
from paramerge.adapters.parts import Part
from paramerge.adapters.sizes import SizeSettings
from paramerge.algebra import Orthonormal, orthonormalise, storage_tolerance
from paramerge.errors import AdapterError
from paramerge.files.dtypes import NUMPY
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName

_EPS = 2.0**-52
"""The spacing of float64, in which bases are worked on: their rounding is arithmetic's, not storage's."""


@dataclass(frozen=True)
class ParaModule(DependentModule):
    """One layer of a PaRa, still in its file.

    Attributes
    ----------
    basis:
        B: (d, r), one column for each direction. Only its span counts: the layer's Q comes from
        orthonormalising it, whether or not its columns were orthonormal when it was saved.
    rows:
        The runs ``(start, stop)`` of B's rows, all of them, in the layer's order; None for B's own.
    """

    name: ModuleName
    basis: StoredTensor
    family: str = "para"
    rows: tuple[tuple[int, int], ...] | None = None

    @property
    def rank(self) -> int:
        """The number of columns r in the file; :meth:`directions` counts the independent ones."""
        return self.basis.shape[1]

    @property
    def out_features(self) -> int:
        """Rows d of the weight that it reduces."""
        return self.basis.shape[0]

    @property
    def rank_bound(self) -> int:
        """No more than r directions go."""
        return min(self.rank, self.out_features)

    @property
    def is_cut(self) -> bool:
        return self.rows is not None

    def part(self, name: ModuleName, runs: tuple[tuple[int, int], ...]) -> ParaModule | None:
        """The same directions with their rows in another order; None where rows are missing."""
        ends = [0, *(stop for _, stop in sorted(runs))]
        if [start for start, _ in sorted(runs)] != ends[:-1] or ends[-1] != self.out_features:
            return None
        return replace(self, name=name, rows=runs)

    def columns(self) -> np.ndarray:
        """The stored columns (d, r) in the layer's order of rows, float64.

        Raises
        ------
        NonFiniteError
            NaN or Inf in the basis.
        """
        return in_order(read_finite(self.basis), self.rows)

    def directions(self, library: Callable[[np.ndarray], Any] = np.asarray) -> Orthonormal[Any]:
        """An orthonormal basis of the stored span, made anew in float64 (T13); every verb reads it here.

        Columns that differ from the others by the rounding of their storage alone add nothing; a basis of
        zeros has rank 0.

        Parameters
        ----------
        library:
            The function from a float64 NumPy array to the kind of array to work on, such as
            ``torch.from_numpy``.

        Raises
        ------
        NonFiniteError
            NaN or Inf in the basis.
        AdapterError
            So many columns in so coarse a dtype that rounding alone could make them.
        """
        return orthonormalise(library(self.columns()), rtol=storage_cut([self]))

    def some_directions(self, library: Callable[[np.ndarray], Any] = np.asarray) -> Any:
        """The ``Q`` (d, rank) of :meth:`directions`, at least one column.

        Raises
        ------
        NonFiniteError
            NaN or Inf in the basis.
        AdapterError
            It is zero, or stored too coarsely.
        """
        found = self.directions(library)
        if found.rank == 0:
            raise AdapterError(
                "the basis of this layer is zero: it names no direction to remove",
                where=f"{self.basis.path}: {self.basis.key}",
                hint="the training that made it failed here (B must not start at zero); leave the layer out",
            )
        return found.Q

    def transform(self, W: np.ndarray) -> np.ndarray:
        """``W - Q Q^T W``."""
        Q = self.directions().Q
        return np.asarray(W - Q @ (Q.T @ W))


_LARGEST_CUT = 0.8
"""Share of the largest singular value: an orthonormal basis rounded to 8 bits keeps more than 0.85 of it in
every direction (measured, also where it is square), so that none is taken for rounding."""


def storage_cut(modules: Iterable[ParaModule]) -> float:
    """The relative singular value up to which directions of all ``modules`` together are rounding (T4, T13).

    Raises
    ------
    AdapterError
        Rounding alone could make every direction.
    """
    modules = list(modules)
    columns = sum(module.rank for module in modules)
    coarsest = max(modules, key=lambda module: storage_tolerance(NUMPY[module.basis.dtype].name, columns))
    cut = storage_tolerance(NUMPY[coarsest.basis.dtype].name, columns)
    cut = max(cut, max(coarsest.out_features, columns, 16) * _EPS)
    if cut >= _LARGEST_CUT:
        raise AdapterError(
            "a basis is stored so coarsely that its directions may be rounding",
            where=f"{coarsest.basis.path}: {coarsest.basis.key}",
            expected="F16, BF16 or F32",
            found=f"{columns} columns in {coarsest.basis.dtype}",
            hint="save it in F16 where it was made",
        )
    return cut


def _part(module: LayerModule, to: str, dtype: str | None) -> Part | None:
    if not isinstance(module, ParaModule):
        return None
    basis = in_order(read_stored(module.basis), module.rows)
    return Part(module.name, "para", {"basis": basis}, rank=module.rank)


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return shape[0] * min(settings.rank, shape[0])


FAMILY = Family(
    key="para",
    label="PaRa",
    formula="W - Q Q^T W",
    forms=(Form("PaRa", {"para_B": "basis"}, None, {"basis": MATRIX}),),
    stored=_stored,
    ranked=True,
    parts=dict.fromkeys(("para", "deft"), _part),
)
