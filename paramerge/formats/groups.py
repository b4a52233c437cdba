"""The keys of one layer, taken one by one; what nobody takes, and what does not fit, is an error."""

from __future__ import annotations

import math
from collections.abc import Iterable

from paramerge.checkpoints.dtypes import is_float
from paramerge.checkpoints.header import Header
from paramerge.checkpoints.modules import ModuleName
from paramerge.checkpoints.tensors import StoredTensor, stored
from paramerge.errors import AdapterError, NonFiniteError, ShapeError
from paramerge.formats.listing import listed
from paramerge.formats.roles import Role

__all__ = ["Group", "group_by_layer"]

_NUMBERS = ("alpha", "on_input")


class Group:
    """All keys of a layer (or a norm, or an embedding) by their roles."""

    def __init__(self, header: Header, name: ModuleName, layer: bool) -> None:
        self.name = name
        self.layer = layer
        self._header = header
        self._keys: dict[str, str] = {}
        self._taken: dict[str, str] = {}

    @property
    def roles(self) -> frozenset[str]:
        """All roles that there are."""
        return frozenset(self._keys) | frozenset(self._taken)

    @property
    def parameter(self) -> ModuleName:
        """The name of the weight itself, where it is no layer's."""
        return self.name if self.layer else ModuleName(self.name.component, f"{self.name.path}.weight")

    @property
    def bias(self) -> ModuleName:
        """The name of its bias."""
        return ModuleName(self.name.component, f"{self.name.path}.bias")

    def add(self, role: Role) -> None:
        """Put a key to its layer.

        Raises
        ------
        AdapterError
            Another key has the same role.
        """
        if role.role in self._keys:
            raise AdapterError(
                "two keys of this file name the same tensor of the same layer",
                where=f"{self._header.path}: {self.name}",
                expected="one key",
                found=f"{self._keys[role.role]} and {role.key}",
                hint="the file was probably joined from two: take one of its parts",
            )
        self._keys[role.role] = role.key

    def has(self, role: str) -> bool:
        """Whether there is such a key that nobody has taken yet."""
        return role in self._keys

    def take(self, role: str) -> StoredTensor | None:
        """The tensor of this role, floating and not empty, or None."""
        key = self._keys.pop(role, None)
        if key is None:
            return None
        self._taken[role] = key
        tensor = stored(self._header, key)
        if role not in _NUMBERS and not is_float(tensor.dtype):
            raise AdapterError(
                "a tensor of this adapter is not stored as floating-point numbers",
                where=f"{tensor.path}: {key}",
                expected="F32, F16, BF16 or another float dtype",
                found=tensor.dtype,
            )
        if 0 in tensor.shape:
            raise AdapterError(
                "a layer of rank or size 0", where=f"{tensor.path}: {key}", found=list(tensor.shape)
            )
        return tensor

    def need(self, role: str) -> StoredTensor:
        """As :meth:`take`, where the family is nothing without it.

        Raises
        ------
        AdapterError
            It is missing.
        """
        tensor = self.take(role)
        if tensor is None:
            raise AdapterError(
                "a layer of this adapter is incomplete",
                where=f"{self._header.path}: {self.name}",
                expected=f"its {role}",
                found=listed([*self._taken.values(), *self._keys.values()]),
                hint="the file is damaged or was cut: get it from its source again",
            )
        return tensor

    def key_of(self, role: str) -> str | None:
        """The key of a role, taken or not."""
        return self._taken.get(role) or self._keys.get(role)

    def number(self, role: str, *, positive: bool = False) -> float | None:
        """A single finite number; not 0, unless it is a bound (``positive``), which is not below 0."""
        tensor = self.take(role)
        if tensor is None:
            return None
        where = f"{tensor.path}: {tensor.key}"
        if math.prod(tensor.shape) != 1:
            raise ShapeError(
                f"an {role} is not a single number",
                where=where,
                expected="shape []",
                found=list(tensor.shape),
            )
        value = float(tensor.read().reshape(()).astype("float64"))
        if not math.isfinite(value):
            raise NonFiniteError(f"an {role} is not finite", where=where, found=value)
        if value == 0 and not positive:
            raise AdapterError(
                f"an {role} is 0: the layer would be multiplied by nothing",
                where=where,
                expected="a number other than 0",
                hint="trainers that were given alpha 0 save alpha = rank: this file is damaged",
            )
        if value < 0 and positive:
            raise AdapterError(
                f"an {role} bounds a norm, and is below 0", where=where, expected="0 or above", found=value
            )
        return value

    def check(self, fits: bool, expected: str) -> None:
        """Refuse shapes that do not fit together.

        Raises
        ------
        ShapeError
        """
        if not fits:
            keys = [key for role, key in self._taken.items() if role not in _NUMBERS]
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
                hint="the file was joined from several, or comes from a trainer that is not known here",
            )


def group_by_layer(header: Header, roles: Iterable[Role]) -> list[Group]:
    """The groups of a file, in the order in which the layers first appear."""
    groups: dict[ModuleName, Group] = {}
    for role in roles:
        place = role.place
        group = groups.setdefault(place.name, Group(header, place.name, place.layer))
        group.add(role)
    return list(groups.values())
