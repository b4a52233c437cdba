"""Adapters as patches of ComfyUI's loaded models: planned as for a bake, carried out when a weight is loaded.

The loaded model is planned on as the single file that it would be, so names, errors and warnings are those of
``paramerge bake``. Patches run in the order of the nodes, beside those of ComfyUI's own loaders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from comfy.weight_adapter import WeightAdapterBase

import paramerge as pm
from paramerge.apply.loaded import LoadedEdits
from paramerge.checkpoints.layout import Base
from paramerge.checkpoints.loaded import base_of_tensors
from paramerge.errors import CheckpointError

_UNET = "diffusion_model."
_FILE = "model."
"""Before the keys of the diffusion model in a single file."""
_TEXT = "text_encoders."


class BakedWeight(WeightAdapterBase):
    """The steps on one weight, as a patch.

    ComfyUI builds patches anew from ``loaded_keys`` and ``weights`` when it offloads a model.
    """

    name = "paramerge"

    def __init__(self, loaded_keys: set[str], weights: Any) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: object,
        function: Callable[[torch.Tensor], torch.Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: object = None,
    ) -> torch.Tensor:
        """``weight`` as the steps leave it; ``strength`` is a factor on theirs (1, or a hook's)."""
        edits: LoadedEdits = self.weights[0]
        return weight.copy_(edits.change(weight, strength))


def base_of(model: Any, clip: Any = None) -> Base:
    """The loaded model (and text encoders) as a base."""
    shapes = {f"{_FILE}{key}": shape for key, shape in _shapes(model) if key.startswith(_UNET)}
    if clip is not None:
        shapes |= {f"{_TEXT}{key}": shape for key, shape in _shapes(clip.patcher)}
    return base_of_tensors("the loaded model", shapes)


def _shapes(patcher: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in patcher.model_state_dict().items()]


def patched(
    model: Any,
    clip: Any,
    adapters: Iterable[pm.Adapter],
    strengths: tuple[float, float] = (1.0, 1.0),
    merge: Literal["joint", "sequential"] = "joint",
    gamma: float | None = None,
) -> tuple[Any, Any]:
    """Copies of ``model`` and ``clip`` (which may be None) with the adapters as patches.

    Parameters
    ----------
    strengths:
        Factors on the adapters' own strengths, in the diffusion model and in the text encoders.

    Raises
    ------
    ParamergeError
        An adapter does not belong to this model, or not all of it does.
    """
    base = base_of(model, clip)
    models = {name.component for file in base.files for name in file.reachable}
    plan = pm.plan_bake(base, adapters, merge=merge, gamma=gamma, only=() if clip is not None else models)
    patches = {
        tensor.info.key: BakedWeight({tensor.info.key}, (LoadedEdits(tensor.edits),))
        for file in plan.files
        for tensor in file.tensors
        if tensor.edits
    }
    _log(plan)
    model = model.clone()
    _add(model, patches, _FILE, strengths[0])
    if clip is not None:
        clip = clip.clone()
        _add(clip.patcher, patches, _TEXT, strengths[1])
    return model, clip


def _add(patcher: Any, patches: Mapping[str, BakedWeight], prefix: str, strength: float) -> None:
    """Give the patches below ``prefix`` to the model, which must have all their weights."""
    mine = {key.removeprefix(prefix): patch for key, patch in patches.items() if key.startswith(prefix)}
    if not strength:
        return
    missing = set(mine).difference(patcher.add_patches(mine, strength))
    if missing:
        raise CheckpointError("the loaded model has no such weights", where=", ".join(sorted(missing)[:5]))


def _log(plan: pm.Plan) -> None:
    for warning in (*plan.order_warnings, *plan.warnings):
        logging.warning("paramerge: %s", warning)
    for step in plan.steps:
        excluded = f", {len(step.excluded)} of text encoders left out" if step.excluded else ""
        logging.info("paramerge: %s on %d layers%s", step.adapter.path.name, len(step.matched), excluded)
