"""The base's own past, from outside: the recipe of an earlier bake and other metadata.

A recipe is kept whole if it is one that every reader of JSON can take; of a private bake every entry that may
have names in it is left out, of the recipe and of the metadata, as far back as they go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from paramerge.adapters.registry import families
from paramerge.checkpoints.layout import Base
from paramerge.files.recipe_text import RECIPE_KEY, parsed_recipe
from paramerge.strict_json import parse


@dataclass(frozen=True)
class EarlierRecipe:
    """The recipe that a base carries, or why it cannot be kept; neither for a base that is no bake."""

    recipe: dict[str, object] | None = None
    fault: str | None = None


def earlier_recipe(base: Base, *, private: bool = False) -> EarlierRecipe:
    """The recipe of a base that is itself a bake; ``private`` for all but its names."""
    found = EarlierRecipe()
    for file in base.files:
        text = file.header.metadata.get(RECIPE_KEY)
        if text is None:
            continue
        try:
            recipe = parsed_recipe(text)
        except ValueError as error:
            found = EarlierRecipe(
                fault=f"the recipe of an earlier bake in {file.relative} is left out: {error}"
            )
            continue
        return EarlierRecipe(_without_names(recipe) if private else recipe)
    return found


def without_paths(config: bytes) -> bytes:
    """A configuration (JSON) without the entries that say where a model was loaded from."""
    try:
        content = parse(config)
    except ValueError:
        return config
    if not isinstance(content, dict) or not content.keys() & _LOADED_FROM:
        return config
    kept = {key: value for key, value in content.items() if key not in _LOADED_FROM}
    return (json.dumps(kept, indent=2) + "\n").encode()


_LOADED_FROM = {"_name_or_path", "name_or_path"}
_HEX = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9_.:+-]{1,40}")
_BLOCK = re.compile(r"[A-Z]{2,4}[0-9]{0,2}")
_WORDS = {
    *("versions", "paramerge", "torch", "numpy", "ml_dtypes", "kernel"),
    *("layout", "architecture", "kind", "family", "dialect", "merge", "dtype", "krona", "rows"),
    *("quantise", "alpha", "rounding", "lift"),
}
_INSIDE = {"base", "steps", "files", "options", "versions", "content", "companions", "base_recipe"}
_NUMBERS = {
    *("recipe", "bytes", "strength", "layers", "layers_excluded", "layers_unmatched", "keys_left_over"),
    *("gamma", "allow_unmatched", "allow_other_model", "private", "lokr_scale", "weight", "requantise"),
    "accept_loss",
}


def _without_names(recipe: Mapping[str, object]) -> dict[str, object]:
    """The entries that a recipe of paramerge has, in the form that they have there, without names."""
    return {key: kept for key, value in recipe.items() if (kept := _cleaned(key, value)) is not _NOTHING}


_NOTHING = object()


def _cleaned(key: str, value: object) -> object:
    if key == "merge" and isinstance(value, dict):
        return _merge_without_names(value)
    if key in _INSIDE and isinstance(value, dict):
        return _without_names(value)
    if key in _INSIDE and isinstance(value, list):
        return [_without_names(item) for item in value if isinstance(item, dict)]
    if key == "families" and isinstance(value, dict):
        labels = {family.label for family in families()}
        return {name: count for name, count in value.items() if name in labels and _number(count)}
    if key == "blocks" and isinstance(value, dict):
        return {
            name: _without_names(use)
            for name, use in value.items()
            if _BLOCK.fullmatch(name) and isinstance(use, dict)
        }
    if isinstance(value, str):
        known = _HEX.fullmatch(value) if key == "sha256" else key in _WORDS and _WORD.fullmatch(value)
        return value if known else _NOTHING
    return value if key in _NUMBERS and _number(value) else _NOTHING


def _merge_without_names(merge: Mapping[str, object]) -> dict[str, object]:
    """The merge without the models' names: methods and parameters are words and numbers."""
    models = merge.get("models")
    return {
        "models": [
            _without_names(model) | _nested(model.get("recipe"))
            for model in (models if isinstance(models, list) else [])
            if isinstance(model, dict)
        ],
        **{key: _plain(merge[key]) for key in ("steps", "components", "prune", "tensors") if key in merge},
    }


def _nested(recipe: object) -> dict[str, object]:
    return {"recipe": _without_names(recipe)} if isinstance(recipe, dict) else {}


def _plain(value: object) -> object:
    """Numbers, words of a merge, and what is made of them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if _MERGE_WORD.fullmatch(key)}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if _number(value) or (isinstance(value, str) and _MERGE_WORD.fullmatch(value)) else None


_MERGE_WORD = re.compile(r"(model|step|input) \d{1,6}|[a-z]+([_-][a-z0-9]+){0,3}|[A-Z]{2,4}[0-9]{0,2}")
"""Methods, parameters, blocks and numbered models; a file's name has a dot."""


def _number(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float)
