"""Two checkpoints layer by layer: what was done to what adapters reach, and to the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from paramerge.checkpoints.layout import Base
from paramerge.checkpoints.modules import COMPONENTS, ModuleName
from paramerge.checkpoints.tensors import stored
from paramerge.combining.base import BaseWeights
from paramerge.errors import ArchitectureError, ShapeError, UnmatchedError
from paramerge.formats.listing import listed

__all__ = ["ChangedLayer", "Differences"]


@dataclass(frozen=True)
class ChangedLayer:
    """A layer's weight before and after, (d, k) float64; ``shape`` is its own, ``dtype`` the tuned one's."""

    name: ModuleName
    shape: tuple[int, ...]
    base: np.ndarray
    tuned: np.ndarray
    dtype: str

    @property
    def kernel(self) -> tuple[int, ...]:
        """``(kh, kw)`` of a convolution, ``()`` of a linear layer."""
        return self.shape[2:]

    def take_difference(self) -> np.ndarray:
        """``tuned - base``, in the place of ``base``, which is gone then: big layers need the memory."""
        return np.asarray(np.subtract(self.tuned, self.base, out=self.base))


class Differences:
    """The layers of two checkpoints of one architecture, read two at a time."""

    def __init__(self, base: Base, tuned: Base, only: Collection[str] = ()) -> None:
        self.base, self.tuned = base, tuned
        self._only = frozenset(only)
        if base.architecture != tuned.architecture:
            raise ArchitectureError(
                "these checkpoints are of different architectures",
                where=tuned.path,
                expected=f"{base.architecture}, as {base.path.name}",
                found=tuned.architecture,
            )
        self._weights = BaseWeights(base), BaseWeights(tuned)
        self.layers = self._common("targets", only)
        self._others = self._common("parameters", only)

    def changed(self) -> Iterator[ChangedLayer | None]:
        """Each layer in the order of :attr:`layers`; None for one that is the same in both.

        Raises
        ------
        NonFiniteError
            A weight holds NaN or Inf.
        CheckpointError
            It is stored in a form that cannot be computed on.
        """
        before, after = self._weights
        for name in self.layers:
            if self._same_bytes(name):
                yield None
                continue
            W, tuned = before.matrix(name), after.matrix(name)
            if np.array_equal(W, tuned):
                yield None
                continue
            yield ChangedLayer(name, after.target(name).shape, W, tuned, after.dtype(name))

    def other_changes(self) -> dict[str, str]:
        """What else is not the same in both, and what it is: norms, biases, embeddings, a VAE."""
        before, after = self._weights
        found = {
            str(name): "a norm, bias or embedding"
            for name in self._others
            if not self._same_bytes(name) and not np.array_equal(before.matrix(name), after.matrix(name))
        }
        return found | dict.fromkeys(self._changed_beside(), "no layer that adapters reach")

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
                    (file.relative.parent, key): stored(file.header, key)
                    for file in side.files
                    for key in file.header.tensors
                    if key not in reached and (not self._only or file.components[key] in self._only)
                }
            )
        for place in sorted(sides[0].keys() & sides[1].keys()):
            one, other = (side[place] for side in sides)
            if (
                one.shape != other.shape
                or (one.dtype == other.dtype and one.read_bytes() != other.read_bytes())
                or (one.dtype != other.dtype and not np.array_equal(one.read(), other.read()))
            ):
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
        for name in names[0] & names[1]:
            if found[0][name].shape != found[1][name].shape:
                raise ShapeError(
                    "a layer has another shape in each checkpoint",
                    where=name,
                    expected=f"{list(found[0][name].shape)}, as {self.base.path.name}",
                    found=list(found[1][name].shape),
                )
        return sorted(names[0] & names[1], key=lambda name: (COMPONENTS.index(name.component), name.path))

    def _same_bytes(self, name: ModuleName) -> bool:
        """Whether both are stored alike, in the same bytes: the quick way to see that nothing was done."""
        sides = [weights.place(name) for weights in self._weights]
        (one, first), (other, second) = sides
        tensors = stored(one.header, first.key), stored(other.header, second.key)
        alike = (first.rows, first.transposed) == (second.rows, second.transposed)
        if not alike or tensors[0].dtype != tensors[1].dtype or tensors[0].shape != tensors[1].shape:
            return False
        return tensors[0].read_bytes() == tensors[1].read_bytes()
