"""Old forms of the public API, which keep working for one version with a DeprecationWarning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def deprecated(what: str, instead: str, *, level: int = 3) -> None:
    """Warn that ``what`` goes with the next version; ``level`` is that of :func:`warnings.warn`."""
    warnings.warn(f"{what} goes with the next version: {instead}", DeprecationWarning, stacklevel=level)


def also_takes(
    is_old: Callable[[tuple[Any, ...], dict[str, Any]], bool], old: Callable[..., Any], instead: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The function as it is, but for calls of the old form, which ``old`` answers after a warning."""

    def decorate(new: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(new)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if is_old(args, kwargs):
                deprecated(f"this form of paramerge.{new.__name__}", instead)
                return cast(R, old(*args, **kwargs))
            return new(*args, **kwargs)

        return call

    return decorate
