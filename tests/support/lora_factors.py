"""A LoRA on every linear layer of a model in both of its namings, and what a plan adds to each tensor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from dialect_files import Array, Factors
from numpy.typing import NDArray
from single_files import as_single_file

from paramerge.apply.operations import LoraOp
from paramerge.bake.plan import Plan
from paramerge.models.key_map import KeyMap, single_key

RANK = 2
_NO_LINEAR = ("cond_type_embed.weight", "ff_i.gate.weight")
"""An embedding, and a layer that is no module of torch's: PEFT puts no LoRA on it."""

Shapes = Mapping[str, tuple[int, ...]]


def stacked(key_map: KeyMap, state: Mapping[str, Array], shapes: Shapes) -> dict[str, Array]:
    """Values by diffusers' paths under the single file's."""
    tensors = {f"{path}.weight": torch.from_numpy(value) for path, value in state.items()}
    single = as_single_file(key_map, tensors, shapes)
    return {key.removesuffix(".weight"): value.numpy() for key, value in single.items()}


def factors_of(key_map: KeyMap, shapes: Shapes) -> tuple[Factors, Factors]:
    """A LoRA on every linear layer, by diffusers' paths and by the single file's; parts of a stack share
    their down factor."""
    rng = np.random.default_rng(0)
    linear = {
        key.removesuffix(".weight"): shape
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2 and not key.endswith(_NO_LINEAR)
    }
    up = {path: rng.standard_normal((shape[0], RANK)).astype(np.float32) for path, shape in linear.items()}
    down: dict[str, Array] = {}
    single_down: dict[str, Array] = {}
    for path, shape in linear.items():
        single = str(single_key(key_map, f"{path}.weight")).removesuffix(".weight")
        made = rng.standard_normal((RANK, shape[1])).astype(np.float32)
        down[path] = single_down.setdefault(single, made)
    single_up = stacked(key_map, up, shapes)
    return (
        {path: (up[path], down[path]) for path in linear},
        {path: (value, single_down[path]) for path, value in single_up.items()},
    )


def changes(plan: Plan) -> dict[str, NDArray[np.float64]]:
    """What a plan adds to every tensor, by its key."""
    found: dict[str, NDArray[np.float64]] = {}
    for edit in plan.edits:
        (op,) = edit.ops
        assert isinstance(op, LoraOp)
        tensor = next(f.header.tensors[edit.target.key] for f in plan.base.files)
        total = found.setdefault(edit.target.key, np.zeros((tensor.shape[0], edit.target.shape[1])))
        start, stop = edit.target.rows or (0, tensor.shape[0])
        total[start:stop] += op.module.change().whole()
    return found
