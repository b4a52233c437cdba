"""Names that the top of the package had in the last version, each with a DeprecationWarning."""

from __future__ import annotations

import importlib

from paramerge.deprecation import deprecated

_BY_NAME = "give the options by name"
_PLACES = {
    "BakeOptions": ("apply.steps", _BY_NAME),
    "CombineOptions": ("merge.request", _BY_NAME),
    "ConvertOptions": ("convert.request", _BY_NAME),
    "ExtractOptions": ("extract.families", _BY_NAME),
    "Input": ("merge.request", "use paramerge.Lora, or a path"),
    "Step": ("apply.steps", "use paramerge.Para, Lora or Adapter"),
    "adapter_sizes": ("sizes.sizes", "use paramerge.sizes"),
    "combine": ("merge.combine", "use paramerge.merge"),
    "make_plan": ("bake.plan", "use paramerge.plan_bake"),
}
"""The modules of the old names, with their replacements."""


def old_name(name: str) -> object:
    """The old ``paramerge.name``, the linear algebra among these.

    Raises
    ------
    AttributeError
        There was no such name.
    """
    if name in _PLACES:
        place, instead = _PLACES[name]
        deprecated(f"paramerge.{name}", instead, level=4)
        return getattr(importlib.import_module(f"paramerge.{place}"), name)
    from paramerge import algebra

    if name not in algebra.__all__:
        raise AttributeError(f"module 'paramerge' has no attribute {name!r}")
    deprecated(f"paramerge.{name}", f"use paramerge.algebra.{name}", level=4)
    return getattr(algebra, name)
