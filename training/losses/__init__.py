"""The losses of each number of a prediction, by name; each is in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paramerge.training.losses.huber import huber
from paramerge.training.losses.squared import squared

__all__ = ["LOSSES"]

LOSSES: dict[str, Callable[[Any, Any], Any]] = {"squared": squared, "huber": huber}
"""Functions of the error (a tensor) and the settings to a tensor of the same shape."""
