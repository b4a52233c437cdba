"""The text of a recipe in a file's metadata, which anybody may have written."""

from __future__ import annotations

import json
import math

__all__ = ["RECIPE_KEY", "parsed_recipe"]

RECIPE_KEY = "paramerge.recipe"

_MAX_BYTES = 4 << 20
_MAX_DEPTH = 100
"""Levels of nesting; every bake of a bake adds one."""


def parsed_recipe(text: str) -> dict[str, object]:
    """The recipe in a metadata entry.

    Raises
    ------
    ValueError
        It is no JSON object, too large or too deep, or holds numbers that JSON does not have.
    """
    if len(text) > _MAX_BYTES:
        raise ValueError(f"it has {len(text)} characters, {_MAX_BYTES} are allowed")
    try:
        recipe = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise ValueError("it is no JSON") from None
    if not isinstance(recipe, dict):
        raise ValueError("it is no JSON object")
    level: list[object] = [recipe]
    for _ in range(_MAX_DEPTH):
        level = [part for value in level for part in _parts(value)]
        if any(isinstance(value, float) and not math.isfinite(value) for value in level):
            raise ValueError("it holds a number that is not finite")
    if level:
        raise ValueError("it is nested too deeply")
    return recipe


def _parts(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
