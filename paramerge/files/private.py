"""Metadata without names, for ``private`` in every verb."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PUBLIC = {
    "format",
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.resolution",
    "modelspec.prediction_type",
    "modelspec.timestep_range",
    "modelspec.encoder_layer",
}
_PUBLIC_VALUE = re.compile(r"[A-Za-z0-9_.,/+-]{0,64}")


def public_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries that describe a model and cannot have names or paths in them."""
    return {
        key: value for key, value in metadata.items() if key in _PUBLIC and _PUBLIC_VALUE.fullmatch(value)
    }


def without_names(recipe: Any) -> Any:
    """A recipe of paramerge without the names of files in it, at any depth."""
    if isinstance(recipe, dict):
        return {key: without_names(value) for key, value in recipe.items() if key != "name"}
    if isinstance(recipe, list):
        return [without_names(item) for item in recipe]
    return recipe
