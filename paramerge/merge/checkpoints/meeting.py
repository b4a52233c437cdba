"""The tensors of one model matched with another's: under the same key, or by the names of its layers.

Layouts differ in keys, in what they stack, in what they store transposed, and in shapes that mean the same (a
matrix and a convolution of one pixel). The layers that adapters reach are named by
:mod:`paramerge.checkpoints`, and the VAE by the names of single files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from paramerge.checkpoints.layout import Base, WeightFile
from paramerge.checkpoints.targets import Target
from paramerge.errors import ShapeError
from paramerge.files.tensors import StoredTensor
from paramerge.merge.checkpoints.ingredients import Piece, Rows
from paramerge.models.key_map import KeyMap
from paramerge.models.names import ModuleName, split_kind
from paramerge.models.registry import record_of
from paramerge.models.vae_keys import vae_names
from paramerge.wording import call


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of a model: its file, and the component that it belongs to."""

    file: WeightFile
    key: str

    @property
    def component(self) -> str:
        """A component of a pipeline, ``ema`` or ``other``."""
        return self.file.components[self.key]

    @property
    def tensor(self) -> StoredTensor:
        """The tensor, unread; of a quantised weight its true values."""
        return self.file.tensor(self.key)


class Model:
    """A checkpoint whose tensors can be found by another one's."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._places = {
            (file.components[key], key): Place(file, key)
            for file in base.files
            for key in file.header.tensors
        }

    @cached_property
    def components(self) -> frozenset[str]:
        """The components that it has."""
        return frozenset(component for component, _ in self._places)

    @cached_property
    def _targets(self) -> Mapping[ModuleName, tuple[WeightFile, Target]]:
        found = {name: (file, target) for file in self.base.files for name, target in file.reachable.items()}
        vae = {key: place for (component, key), place in self._places.items() if component == "vae"}
        for key, name in vae_names(vae).items():
            module = ModuleName("vae", name)
            found[module] = (vae[key].file, Target(module, key, vae[key].tensor.shape))
        return found

    @cached_property
    def _by_place(self) -> Mapping[tuple[str, str], Sequence[Target]]:
        """The views of each stored tensor, those of its parts in the order of the rows."""
        found: dict[tuple[str, str], list[Target]] = {}
        for file, target in self._targets.values():
            found.setdefault((file.components[target.key], target.key), []).append(target)
        return found

    @cached_property
    def _key_maps(self) -> Sequence[KeyMap]:
        return record_of(self.base.architecture).key_maps

    def places(self) -> Iterator[Place]:
        """All tensors, in the order of the files and of their bytes."""
        return iter(self._places.values())

    def views_of(self, place: Place) -> Sequence[Target]:
        """The layers that a tensor is, or is made of; nothing for one without a name."""
        return self._by_place.get((place.component, place.key), ())

    def name_of(self, place: Place) -> ModuleName:
        """The name of a tensor's layer (of a stack, of its first part), or its key where it has none."""
        views = self.views_of(place)
        return views[0].module if views else ModuleName(place.component, place.key)

    def rows_of(self, place: Place, other: Model) -> Rows | None:
        """The tensor ``place`` of ``other`` in this model; None where it is missing, all or in part.

        Raises
        ------
        ShapeError
            It is there, and has another shape.
        """
        same = self._places.get((place.component, place.key))
        if same is not None:
            return Rows((self._whole(place, same),))
        views = other.views_of(place)
        for stack in (False, True):  # by its parts, or under a name for them all
            pieces = [self._found(place, view) for view in views if view.stack is stack]
            if pieces and None not in pieces:
                return Rows(tuple(piece for found in pieces if found for piece in found))
        return None

    def has(self, place: Place, other: Model) -> bool:
        """Whether the tensor ``place`` of ``other`` is in this model, in any shape."""
        if (place.component, place.key) in self._places:
            return True
        views = other.views_of(place)
        return bool(views) and any(
            name in self._targets
            for view in views
            for name in (view.module, *(name for name, _ in self._other_names(view.module)))
        )

    def _whole(self, place: Place, same: Place) -> Piece:
        wanted, found = place.tensor, same.tensor
        rows = _rows(wanted.shape)
        if _squeezed(wanted.shape) != _squeezed(found.shape) and not _has_fewer_inputs(wanted, found):
            raise self.shape_error(place, wanted.shape, found)
        return Piece(0, rows, found)

    def _found(self, place: Place, view: Target) -> list[Piece] | None:
        """The rows of ``view``, which is all of a tensor or some of its rows."""
        start, stop = view.rows or (0, _rows(place.tensor.shape))
        if view.module in self._targets:
            return [self._piece(place, view, self._targets[view.module], start, stop)]
        for name, halves in self._other_names(view.module):
            if name in self._targets:
                piece = self._piece(place, view, self._targets[name], start, stop)
                if not halves:
                    return [piece]
                middle = (start + stop) // 2
                half = stop - middle
                return [
                    replace(piece, stop=middle, first=piece.first + half),
                    replace(piece, start=middle, first=piece.first),
                ]
        return None

    def _other_names(self, module: ModuleName) -> Iterator[tuple[ModuleName, bool]]:
        """The name in the other naming of a layer with its halves the other way round."""
        path, kind = split_kind(module.path)
        for key_map in self._key_maps:
            layer = key_map.layer(path)
            if layer is not None and layer.swapped:
                yield ModuleName(module.component, layer.parts[0] + kind), True
            single = key_map.path(path)
            layer = key_map.layer(single) if single is not None else None
            if single is not None and layer is not None and layer.swapped:
                yield ModuleName(module.component, single + kind), True

    def _piece(
        self, place: Place, view: Target, there: tuple[WeightFile, Target], start: int, stop: int
    ) -> Piece:
        file, target = there
        tensor = file.tensor(target.key)
        if _squeezed(view.shape) != _squeezed(target.shape):
            narrower = view.rows is None and target.rows is None and _has_fewer_inputs(place.tensor, tensor)
            if not narrower:
                raise self.shape_error(place, view.shape, tensor, target.shape)
        return Piece(
            start, stop, tensor, (target.rows or (0, 0))[0], transposed=view.transposed != target.transposed
        )

    def shape_error(
        self, place: Place, wanted: Sequence[int], found: StoredTensor, shape: Sequence[int] | None = None
    ) -> ShapeError:
        """The error for a tensor ``found`` that is not of the shape that ``place`` needs."""
        return ShapeError(
            "a tensor has another shape in this model",
            where=f"{found.path}: {found.key}",
            expected=f"shape {list(wanted)}, as {place.key} in {place.file.header.path.name}",
            found=f"shape {list(found.shape if shape is None else shape)}",
            hint="merge models of one architecture; where one takes more input channels (inpainting), it "
            f"comes first: {call('merge', method='add-difference')}",
        )


def _rows(shape: Sequence[int]) -> int:
    return shape[0] if shape else 1


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the ones behind it: a convolution of one pixel is a matrix."""
    shape = tuple(shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _has_fewer_inputs(wanted: StoredTensor, found: StoredTensor) -> bool:
    """Whether a convolution is the same but for input channels that it lacks."""
    a, b = wanted.shape, found.shape
    return len(a) == len(b) == 4 and (a[0], *a[2:]) == (b[0], *b[2:]) and b[1] < a[1]
