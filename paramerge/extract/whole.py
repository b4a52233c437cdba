"""Norms, biases and embeddings as whole differences, in the form of LoRA files.

Under kohya's names a norm is LyCORIS' ``w_norm`` and ``b_norm``, which readers want together; the bias of a
layer is ``diff_b``, an embedding ``diff``. Under dotted names all are ``diff`` and ``diff_b``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paramerge.adapters.rounding import rounded
from paramerge.errors import UsageError
from paramerge.extract.families import ExtractOptions
from paramerge.formats.dialect import Dialect
from paramerge.formats.kohya import KOHYA
from paramerge.formats.layers import dotted_norm
from paramerge.models.names import ModuleName

WHOLE_FAMILIES = ("lora", "lokr")
"""Families whose files have places for whole differences."""

_PARTNERS = {"w_norm": "b_norm", "b_norm": "w_norm"}


def whole_difference(
    name: ModuleName,
    difference: np.ndarray,
    dialect: Dialect,
    architecture: str | None,
    options: ExtractOptions,
) -> dict[str, np.ndarray]:
    """The tensor for ``name``, which ends in ``.weight`` or ``.bias``; empty where the format has no place.

    A vector is stored as F32: it takes little room, and the tuned one comes back to its own rounding.
    """
    path, _, kind = name.path.rpartition(".")
    if kind not in ("weight", "bias"):  # a table without an ending
        path, kind = name.path, "weight"
    module = ModuleName(name.component, path)
    try:
        stem = dialect.stem(module, architecture)
    except UsageError:
        return {}
    vector = difference.shape[1] == 1
    norm = dialect is KOHYA and vector and dotted_norm(str(module)) is not None
    role = (
        {"weight": "w_norm", "bias": "b_norm"}[kind] if norm else {"weight": "diff", "bias": "diff_b"}[kind]
    )
    value = rounded(name, difference, "F32" if vector else options.dtype)
    return {f"{stem}.{role}": value.reshape(-1) if vector else value}


def completed_norms(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``tensors``, with zeros for the half of a norm that was not changed."""
    found = dict(tensors)
    for key, value in tensors.items():
        stem, _, role = key.rpartition(".")
        if role in _PARTNERS:
            found.setdefault(f"{stem}.{_PARTNERS[role]}", np.zeros_like(value))
    return found
