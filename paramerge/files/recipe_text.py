"""The text of a recipe in a file's metadata, which anybody may have written."""

from __future__ import annotations

from paramerge.strict_json import check_bounds, parse

RECIPE_KEY = "paramerge.recipe"

_MAX_LENGTH = 4 << 20
_MAX_DEPTH = 100
"""Levels of nesting; every bake of a bake adds one."""


def parsed_recipe(text: str) -> dict[str, object]:
    """The recipe in a metadata entry.

    Raises
    ------
    ValueError
        It is no JSON object, too long or too deep, or holds numbers that JSON does not have.
    """
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"it is longer than {_MAX_LENGTH} characters")
    recipe = parse(text)
    check_bounds(recipe, _MAX_DEPTH)
    if not isinstance(recipe, dict):
        raise ValueError("it is no JSON object")
    return recipe
