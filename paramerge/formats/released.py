"""Files of the code that PaRa's authors released, which is another method than the paper's.

They have kohya's names, ``lora_unet_*.lora_up.weight`` and ``.lora_down.weight`` with an alpha of 1, and mean
``W - up down``, the alpha ignored; ``up`` began as the first r unit vectors and was trained freely. Baked as
LoRAs they would have the wrong sign and scale. A "Light" file has ``lora_up`` alone: a span, so a PaRa.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from paramerge.adapters import LayerModule, LoraModule, ParaModule
from paramerge.errors import FamilyError
from paramerge.files.dtypes import NUMPY
from paramerge.files.header import Header
from paramerge.files.tensors import StoredTensor, stored
from paramerge.formats.registry import place_of
from paramerge.interpretation import Interpretation
from paramerge.models.names import ModuleName
from paramerge.wording import option

UP, ALPHA = ".lora_up.weight", ".alpha"
LIGHT = "released-light"
_PREFIX = "lora_unet_"
_SAMPLE = 4
"""Layers whose factors are looked at."""
_NEAR = 0.5
"""AdamW at the released rate moves an entry by about 0.1 in the 1,000 steps that it is trained for."""


def is_light(header: Header) -> bool:
    """Whether a file has ``lora_up`` near the first unit vectors and an alpha for each layer, alone."""
    ups = [key for key in header.tensors if key.startswith(_PREFIX) and key.endswith(UP)]
    alphas = [f"{key.removesuffix(UP)}{ALPHA}" for key in ups]
    shapes = {len(header.tensors[key].shape) for key in ups}
    if not ups or set(header.tensors) != {*ups, *alphas} or not shapes <= {2, 4}:
        return False
    step = max(1, len(ups) // _SAMPLE)
    return all(_near_units(stored(header, key)) for key in ups[::step][:_SAMPLE])


def read_light(header: Header) -> dict[ModuleName, LayerModule]:
    """The layers of a Light file, as a PaRa's."""
    modules: dict[ModuleName, LayerModule] = {}
    for key in header.tensors:
        place = place_of(key.removesuffix(UP)) if key.endswith(UP) else None
        if place is not None:
            basis = stored(header, key)
            matrix = basis.info._replace(shape=basis.shape[:2])  # a convolution's is (d, r, 1, 1)
            modules[place.name] = ParaModule(place.name, replace(basis, info=matrix))
    return modules


def read_released(
    header: Header, modules: Mapping[ModuleName, LayerModule], interpretation: Interpretation
) -> dict[ModuleName, LayerModule]:
    """The layers of a file, those of a released PaRa with the meaning they have there.

    Raises
    ------
    FamilyError
        By its numbers the file is a released PaRa, and nobody has said whether it is.
    """
    released = interpretation.released
    if released is None and looks_released(modules):
        raise FamilyError(
            "by its numbers this is a PaRa of the authors' released code, not a LoRA",
            where=header.path,
            expected="a decision: its layers mean W - up down there, and W + alpha / r up down in a LoRA",
            found="every alpha is 1, and lora_up is near the first unit vectors, from which that code trains",
            hint=f"say {option('released', 'yes')} (to bake, merge, compare, generate, inspect or explain), "
            f"or {option('released', 'no')} if it is a LoRA after all",
        )
    if released != "yes":
        return dict(modules)
    return {name: _subtracted(module) for name, module in modules.items()}


def _subtracted(module: LayerModule) -> LayerModule:
    """A LoRA's layer as ``W - up down``, whatever its alpha."""
    if not isinstance(module, LoraModule):
        return module
    return replace(module, alpha=-float(module.rank), rslora=False)


def looks_released(modules: Mapping[ModuleName, LayerModule]) -> bool:
    """Whether all layers are LoRAs with an alpha of 1, and ``up`` of some is near the first unit vectors."""
    loras = [module for module in modules.values() if isinstance(module, LoraModule)]
    if not loras or len(loras) < len(modules) or any(module.alpha != 1 for module in loras):
        return False
    step = max(1, len(loras) // _SAMPLE)
    return all(_near_units(module.up) for module in loras[::step][:_SAMPLE])


def _near_units(up: StoredTensor) -> bool:
    """Whether a ``lora_up``, (d, r) or (d, r, 1, 1), is near the first r unit vectors."""
    rows, rank = up.shape[:2]
    if rows <= rank or up.info.elements != rows * rank or up.dtype not in NUMPY:
        return False
    matrix = up.read().reshape(rows, rank).astype(np.float64)
    return bool(np.abs(matrix - np.eye(rows, rank)).max(initial=0) < _NEAR)
