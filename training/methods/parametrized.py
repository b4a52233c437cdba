"""Adapters by torch's own parametrizations: ``W`` becomes a function of itself and of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["parametrized"]


def parametrized(
    models: Mapping[str, nn.Module],
    layers: Mapping[str, Mapping[str, Any]],
    make: Callable[[Any], nn.Module],
) -> dict[str, dict[str, nn.Module]]:
    """Put ``make(layer)`` on the weight of each of ``layers``; returns the new modules by component and
    layer."""
    made: dict[str, dict[str, nn.Module]] = {}
    for component in models:
        for name, layer in layers[component].items():
            adapter = make(layer)
            parametrize.register_parametrization(layer, "weight", adapter)
            made.setdefault(component, {})[name] = adapter
    return made
