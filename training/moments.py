"""An optimiser's state by the parameters' names: tensors, and plain numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "blank_moments",
    "group_numbers",
    "moments_of",
    "put_group_numbers",
    "put_moments",
    "unwrapped",
]


def moments_of(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
    """The optimiser's state of each parameter that it has moved; of others there is no entry."""
    kept = unwrapped(optimizer).state
    return {name: dict(kept[p]) for name, p in parameters.items() if kept.get(p)}


def put_moments(optimizer: Any, parameter: nn.Parameter, moments: Mapping[str, Any]) -> None:
    """Give the optimiser these moments of a parameter, each on the device where it keeps such ones."""
    like = blank_moments(optimizer, parameter)
    unwrapped(optimizer).state[parameter] = {
        kind: value.detach().to(like[kind].device).clone() if isinstance(value, Tensor) else value
        for kind, value in moments.items()
    }


def blank_moments(optimizer: Any, parameter: nn.Parameter) -> dict[str, Any]:
    """The optimiser's state of a parameter like this one after a first step: kinds, shapes and dtypes.

    Found by such a step on a copy, whose gradient is 0; the optimiser and the parameter stay as they are.
    """
    inner = unwrapped(optimizer)
    copy = nn.Parameter(parameter.detach().clone())
    copy.grad = torch.zeros_like(copy)
    group = next(group for group in inner.param_groups if any(p is parameter for p in group["params"]))
    twin = object.__new__(type(inner))
    twin.__dict__.update(inner.__dict__)
    twin.state, twin.param_groups = type(inner.state)(dict), [{**group, "params": [copy]}]
    twin.step()
    return dict(twin.state[copy])


def group_numbers(optimizer: Any, names: Sequence[str]) -> list[dict[str, float]]:
    """The numbers of these names in each group, of those that are there."""
    return [
        {name: _plain(group[name]) for name in names if name in group}
        for group in unwrapped(optimizer).param_groups
    ]


def put_group_numbers(optimizer: Any, numbers: Sequence[Mapping[str, float]]) -> None:
    """Put the result of :func:`group_numbers` back."""
    for group, found in zip(unwrapped(optimizer).param_groups, numbers, strict=True):
        group.update(found)


def _plain(value: Any) -> float:
    number: float = value.item() if isinstance(value, Tensor) else value
    return number


def unwrapped(optimizer: Any) -> Any:
    """The optimiser itself, which accelerate wraps."""
    return getattr(optimizer, "optimizer", optimizer)
