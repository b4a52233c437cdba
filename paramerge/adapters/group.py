"""The keys of one layer, taken one by one; a key that nobody takes or that does not fit is an error."""

from __future__ import annotations

from paramerge.adapters.numbers import read_number
from paramerge.errors import AdapterError, IncompleteLayerError, ShapeError
from paramerge.files.dtypes import is_float
from paramerge.files.header import Header
from paramerge.files.tensors import StoredTensor, stored
from paramerge.listing import listed
from paramerge.models.names import ModuleName

ANY_VECTOR = range(1, 6)
"""Axes of a tensor of which nothing more is said."""
NUMBER = range(0)
"""In place of axes: the tensor is a single number, however many axes it has."""


class Group:
    """All keys of a layer (or a norm, or an embedding) by their roles."""

    def __init__(self, header: Header, name: ModuleName, layer: bool) -> None:
        self.name = name
        self.layer = layer
        self._header = header
        self._keys: dict[str, str] = {}
        self._taken: dict[str, str] = {}
        self._axes: dict[str, range] = {}

    @property
    def roles(self) -> frozenset[str]:
        """All roles that there are."""
        return frozenset(self._keys) | frozenset(self._taken)

    @property
    def weight(self) -> ModuleName:
        """The name of the weight of a norm or an embedding."""
        return ModuleName(self.name.component, f"{self.name.path}.weight")

    @property
    def parameter(self) -> ModuleName:
        """The name of the weight, of a layer or not."""
        return self.name if self.layer else self.weight

    @property
    def bias(self) -> ModuleName:
        """The name of its bias."""
        return ModuleName(self.name.component, f"{self.name.path}.bias")

    def add(self, role: str, key: str, axes: range = ANY_VECTOR) -> None:
        """Put a key to its layer.

        Parameters
        ----------
        axes:
            The possible numbers of axes of its tensor, or :data:`NUMBER`. The axes are checked before a
            family sees the tensor, so that it may read the sizes.

        Raises
        ------
        AdapterError
            Another key has the same role.
        """
        if role in self._keys:
            raise AdapterError(
                "two keys of this file name the same tensor of the same layer",
                where=f"{self._header.path}: {self.name}",
                expected="one key",
                found=f"{self._keys[role]} and {key}",
                hint="the file was probably joined from two: take one of its parts",
            )
        self._keys[role] = key
        self._axes[role] = axes

    def axes_of(self, role: str) -> int:
        """The number of axes of a role's tensor, taken or not; KeyError where there is none."""
        return len(self._header.tensors[self._taken.get(role) or self._keys[role]].shape)

    def has(self, role: str) -> bool:
        """Whether there is such a key that nobody has taken yet."""
        return role in self._keys

    def take(self, role: str) -> StoredTensor | None:
        """The tensor of this role, floating, not empty and of as many axes as it can have; or None.

        Raises
        ------
        AdapterError
            Another dtype, or no elements.
        ShapeError
            Another number of axes.
        """
        key = self._keys.pop(role, None)
        if key is None:
            return None
        self._taken[role] = key
        tensor = stored(self._header, key)
        axes = self._axes[role]
        if axes == NUMBER:
            return tensor
        if not is_float(tensor.dtype):
            raise AdapterError(
                "a tensor of this adapter is not stored as floating-point numbers",
                where=f"{tensor.path}: {key}",
                expected="F32, F16, BF16 or another float dtype",
                found=tensor.dtype,
            )
        if 0 in tensor.shape:
            raise AdapterError(
                "a layer has rank or size 0", where=f"{tensor.path}: {key}", found=list(tensor.shape)
            )
        if len(tensor.shape) not in axes:
            raise ShapeError(
                f"a tensor of this adapter has {len(tensor.shape)} dimensions, which no {role} has",
                where=f"{tensor.path}: {key}",
                expected=f"{axes.start} to {axes.stop - 1} dimensions" if len(axes) > 1 else f"{axes.start}",
                found=list(tensor.shape),
            )
        return tensor

    def need(self, role: str) -> StoredTensor:
        """The tensor of this role, as :meth:`take` gives it; the family is nothing without it.

        Raises
        ------
        IncompleteLayerError
            It is missing.
        """
        tensor = self.take(role)
        if tensor is None:
            raise IncompleteLayerError(
                "a layer of this adapter is incomplete",
                where=f"{self._header.path}: {self.name}",
                expected=role,
                found=listed([*self._taken.values(), *self._keys.values()]),
                hint="the file is damaged or was cut: get it from its source again",
            )
        return tensor

    def key_of(self, role: str) -> str | None:
        """The key of a role, taken or not."""
        return self._taken.get(role) or self._keys.get(role)

    def number(self, role: str, *, positive: bool = False) -> float | None:
        """The number of this role, or None; see :func:`~paramerge.adapters.numbers.read_number`."""
        tensor = self.take(role)
        return None if tensor is None else read_number(tensor, role, positive=positive)

    def check(self, fits: bool, expected: str) -> None:
        """Refuse shapes that do not fit together.

        Raises
        ------
        ShapeError
        """
        if not fits:
            keys = [key for role, key in self._taken.items() if self._axes[role] != NUMBER]
            raise ShapeError(
                "the tensors of a layer do not fit together",
                where=f"{self._header.path}: {self.name}",
                expected=expected,
                found=", ".join(f"{key} {list(self._header.tensors[key].shape)}" for key in keys),
            )

    def finish(self) -> None:
        """Refuse keys that nobody took: they would be dropped.

        Raises
        ------
        AdapterError
        """
        if self._keys:
            raise AdapterError(
                "a layer has keys that do not go with its family",
                where=f"{self._header.path}: {self.name}",
                expected=f"nothing beside {listed(list(self._taken.values()))}",
                found=listed(list(self._keys.values())),
                hint="the file was joined from several, or comes from a trainer that is not known",
            )
