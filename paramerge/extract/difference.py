"""The difference of two checkpoints, layer by layer: in the layers that adapters reach, and in the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from paramerge.checkpoints.layout import Base
from paramerge.errors import ArchitectureError, ShapeError, UnmatchedError
from paramerge.extract.rounding import coarser, only_rounded
from paramerge.files.dtypes import is_float
from paramerge.files.tensors import StoredTensor
from paramerge.listing import listed
from paramerge.models.names import ModuleName, in_order
from paramerge.models.registry import family_of
from paramerge.resolve.weights import BaseWeights
from paramerge.storage.tensor import TrueTensor


@dataclass(frozen=True)
class ChangedLayer:
    """A layer's weight before and after, (d, k) float64.

    ``shape`` is its own; ``dtype`` the one of both checkpoints that rounds more; ``tuned_dtype`` the one of
    ``tuned``.
    """

    name: ModuleName
    shape: tuple[int, ...]
    base: np.ndarray
    tuned: np.ndarray
    dtype: str
    tuned_dtype: str

    @property
    def kernel(self) -> tuple[int, ...]:
        """``(kh, kw)`` of a convolution, ``()`` of a linear layer."""
        return self.shape[2:]

    def take_difference(self) -> np.ndarray:
        """``tuned - base``, in the place of ``base``, which is gone then: big layers need the memory."""
        return np.asarray(np.subtract(self.tuned, self.base, out=self.base))


class Differences:
    """The layers of two checkpoints of one architecture, read two at a time.

    Attributes
    ----------
    layers:
        Those that adapters reach, in order.
    others:
        Norms, biases and embeddings.
    unlike:
        Layers that have another shape in each, with the reason: the first convolution, where one of the
        checkpoints is for inpainting and the other is not.
    """

    def __init__(self, base: Base, tuned: Base, only: Collection[str] = ()) -> None:
        self.base, self.tuned = base, tuned
        self._only = frozenset(only)
        self.unlike: dict[str, str] = {}
        if family_of(base.architecture) != family_of(tuned.architecture):
            raise ArchitectureError(
                "these checkpoints are of different architectures",
                where=tuned.path,
                expected=f"{base.architecture}, as {base.path.name}",
                found=tuned.architecture,
            )
        self._weights = BaseWeights(base), BaseWeights(tuned)
        self.layers = self._common("targets", only)
        self.others = self._common("parameters", only)

    def changed(self) -> Iterator[ChangedLayer | None]:
        """Each layer in the order of :attr:`layers`; None for one that is the same in both.

        Two dtypes of one number are the same.

        Raises
        ------
        NonFiniteError
            A weight holds NaN or Inf.
        CheckpointError
            It is stored in a form that cannot be computed on.
        """
        return map(self.at, self.layers)

    def at(self, name: ModuleName) -> ChangedLayer | None:
        """One of :attr:`layers` or :attr:`others`; raises as :meth:`changed`."""
        both = self._changed(name)
        if both is None:
            return None
        before, after = self._weights
        dtype = after.dtype(name)
        coarse = coarser(before.dtype(name), dtype)
        return ChangedLayer(name, after.target(name).shape, *both, coarse, dtype)

    def unchanged(self, name: ModuleName) -> tuple[np.ndarray, str]:
        """The weight of a layer that is the same in both, (d, k) float64, and the dtype that rounds more."""
        before, after = self._weights
        return before.matrix(name), coarser(before.dtype(name), after.dtype(name))

    def changed_parameters(self) -> Iterator[tuple[ModuleName, np.ndarray]]:
        """Norms, biases and embeddings that are not the same in both, and ``tuned - base``, float64."""
        for name in self.others:
            both = self._changed(name)
            if both is not None:
                yield name, both[1] - both[0]

    def changed_beside(self) -> dict[str, str]:
        """Other differences of the two, by name: a VAE, tensors without a place in a model."""
        return dict.fromkeys(self._changed_beside(), "no layer that adapters reach")

    def _changed(self, name: ModuleName) -> tuple[np.ndarray, np.ndarray] | None:
        """The weight before and after, (d, k) float64; None where nothing was done to it."""
        if self._same_bytes(name):
            return None
        before, after = self._weights
        one, other = before.matrix(name), after.matrix(name)
        return None if only_rounded(one, other, before.dtype(name), after.dtype(name)) else (one, other)

    def _changed_beside(self) -> Iterator[str]:
        """Keys of both checkpoints that are no layer's, norm's or bias's, and differ (of one layout only)."""
        sides = []
        for side in (self.base, self.tuned):
            reached = {
                target.key
                for file in side.files
                for target in (*file.targets.values(), *file.parameters.values())
            }
            sides.append(
                {
                    (file.relative.parent, key): file.tensor(key)
                    for file in side.files
                    for key in file.header.tensors
                    if key not in reached
                    and not file.is_part(key)
                    and (not self._only or file.components[key] in self._only)
                }
            )
        for place in sorted(sides[0].keys() & sides[1].keys()):
            if not _is_same(sides[0][place], sides[1][place]):
                yield str(place[0] / place[1])

    def _common(self, kind: str, only: Collection[str]) -> list[ModuleName]:
        found = [
            {name: target for file in side.files for name, target in getattr(file, kind).items()}
            for side in (self.base, self.tuned)
        ]
        names = [
            {
                name
                for name, target in side.items()
                if not target.stack and (not only or name.component in only)
            }
            for side in found
        ]
        present = [{name.component for name in side} for side in names]
        shared = present[0] & present[1]
        lone = sorted(str(name) for name in names[0] ^ names[1] if name.component in shared)
        if kind == "targets" and (lone or not shared):
            raise UnmatchedError(
                "the checkpoints do not have the same layers",
                where=self.tuned.path,
                expected=f"the layers of {self.base.path.name}",
                found=listed(lone) or "no component in common",
            )
        common = names[0] & names[1]
        for name in sorted(common):
            if found[0][name].shape != found[1][name].shape:
                if self.base.architecture != self.tuned.architecture:
                    self.unlike[str(name)] = (
                        f"it is {list(found[0][name].shape)} in the base and {list(found[1][name].shape)} in "
                        "the tuned checkpoint"
                    )
                    common -= {name}
                    continue
                raise ShapeError(
                    "a layer has another shape in each checkpoint",
                    where=name,
                    expected=f"{list(found[0][name].shape)}, as {self.base.path.name}",
                    found=list(found[1][name].shape),
                )
        return in_order(common)

    def _same_bytes(self, name: ModuleName) -> bool:
        """Whether both are stored alike, in the same bytes: the quick way to see that nothing was done."""
        sides = [weights.place(name) for weights in self._weights]
        (one, first), (other, second) = sides
        tensors = one.tensor(first.key), other.tensor(second.key)
        alike = (first.rows, first.transposed) == (second.rows, second.transposed)
        if not alike or tensors[0].dtype != tensors[1].dtype or tensors[0].shape != tensors[1].shape:
            return False
        if isinstance(tensors[0], TrueTensor) != isinstance(tensors[1], TrueTensor):
            return False
        return tensors[0].read_bytes() == tensors[1].read_bytes()


def _is_same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of the same place hold the same, up to the rounding of their dtypes."""
    if one.shape != other.shape:
        return False
    quantised = isinstance(one, TrueTensor) or isinstance(other, TrueTensor)
    if one.dtype == other.dtype and not quantised:
        return one.read_bytes() == other.read_bytes()
    if not (is_float(one.dtype) and is_float(other.dtype)):
        return np.array_equal(one.read(), other.read())
    first, second = (tensor.read_exact().astype(np.float64) for tensor in (one, other))
    return only_rounded(first, second, one.dtype, other.dtype)
