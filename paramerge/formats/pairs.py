"""From keys with a role (up, down, mid, alpha) to checked LoRA modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from paramerge.adapters import LoraModule
from paramerge.adapters.lora import check_factors
from paramerge.adapters.numbers import read_number
from paramerge.adapters.rules import Scaling, scale_by_rank
from paramerge.errors import AdapterError
from paramerge.files.header import Header
from paramerge.files.tensors import stored
from paramerge.listing import listed
from paramerge.models.names import ModuleName

__all__ = ["Part", "collect_modules"]


class Part(NamedTuple):
    """One key of a file, understood: the layer, ``up``, ``down``, ``mid`` or ``alpha``, and the key."""

    name: ModuleName
    role: str
    key: str


def collect_modules(
    header: Header,
    parts: Iterable[Part],
    scaling: Callable[[ModuleName, int], Scaling] = scale_by_rank,
) -> dict[ModuleName, LoraModule]:
    """Join ``parts`` into modules, in the order in which the layers first appear.

    An alpha in the file counts before what ``scaling(name, rank)`` says.

    Raises
    ------
    AdapterError
        A layer is named twice, or has an up without a down (or the reverse), or its rank is 0.
    ShapeError
        Shapes that do not fit together, or that are no matrices.
    NonFiniteError
        An alpha that is NaN or infinite.
    """
    layers: dict[ModuleName, dict[str, str]] = {}
    for name, role, key in parts:
        roles = layers.setdefault(name, {})
        if role in roles:
            raise AdapterError(
                "two keys of this file name the same tensor of the same layer",
                where=f"{header.path}: {name}",
                expected="one key",
                found=f"{roles[role]} and {key}",
                hint="the file was probably joined from two: take one of its parts",
            )
        roles[role] = key
    _refuse_incomplete(header, layers)
    return {name: _module(header, name, roles, scaling) for name, roles in layers.items()}


def _refuse_incomplete(header: Header, layers: Mapping[ModuleName, Mapping[str, str]]) -> None:
    incomplete = [
        f"{listed(list(roles.values()))} without {' and '.join(missing)}"
        for roles in layers.values()
        if (missing := [side for side in ("up", "down") if side not in roles])
    ]
    if incomplete:
        raise AdapterError(
            f"{len(incomplete)} of {len(layers)} layers are incomplete",
            where=header.path,
            expected="an up and a down for every layer",
            found=listed(incomplete),
            hint="the file is damaged or was cut: get it from its source again",
        )


def _module(
    header: Header,
    name: ModuleName,
    roles: Mapping[str, str],
    scaling: Callable[[ModuleName, int], Scaling],
) -> LoraModule:
    up, down = stored(header, roles["up"]), stored(header, roles["down"])
    mid = stored(header, roles["mid"]) if "mid" in roles else None
    check_factors(up, down, mid)
    alpha, rslora = scaling(name, down.shape[0])
    if "alpha" in roles:
        alpha = read_number(stored(header, roles["alpha"]), "alpha")
    return LoraModule(name, up, down, mid, alpha, rslora, roles.get("alpha"))
