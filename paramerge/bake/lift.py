"""Layers raised to a finer dtype: those that would keep too little of a step, measured before the bake.

The same passes as a bake's, over the layers that may need it, without an output; so the figures by which a
layer is raised are those that the bake would have reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paramerge.apply.steps import LIFTS
from paramerge.apply.tensor_plan import FilePlan, TensorPlan
from paramerge.bake.uncoded import without_codes
from paramerge.files.dtype_names import parse_dtype, short_name
from paramerge.files.dtypes import is_float, unit_roundoff
from paramerge.wording import Worded, option

if TYPE_CHECKING:  # planning needs no torch
    from paramerge.apply.survival import LayerSurvival
    from paramerge.bake.plan import Plan

_WORST = 5


@dataclass(frozen=True, slots=True)
class LiftedLayer:
    """A layer that is written in a finer dtype: its survival in the one that it would have had."""

    name: str
    survival: float
    before: str
    after: str


def lift_layers(plan: Plan) -> Plan:
    """The plan with each tensor in ``plan.options.lift`` of which a layer would keep too little of a step.

    Tensors that are as fine already stay. A tensor that holds several layers is raised as a whole.

    Raises
    ------
    NonFiniteError
        NaN or Inf in an adapter or in a result.
    """
    from paramerge.bake.survival import WARNED

    lift = parse_dtype(plan.options.lift, LIFTS, "lift")
    found = {layer.layer: layer for file in plan.files for layer in _measured(file, lift)}
    if not any(_may_need(tensor, lift) for file in plan.files for tensor in file.tensors):
        warning = Worded(f"{option('lift', short_name(lift))} raises nothing: all that changes is as fine")
        return replace(plan, warnings=(*plan.warnings, warning))
    low = {
        name: LiftedLayer(name, layer.lowest, layer.dtype, lift)
        for name, layer in found.items()
        if layer.lowest is not None and layer.lowest < WARNED
    }
    files = tuple(_raised(file, lift, low) for file in plan.files)
    order = [str(edit.target.module) for edit in plan.edits]
    return replace(plan, files=files, lifted=tuple(low[name] for name in order if name in low))


def recipe_entry(lifted: tuple[LiftedLayer, ...]) -> dict[str, object]:
    """The recipe's entry, bounded: how many layers were raised, and the worst of them."""
    worst = sorted(lifted, key=lambda layer: (layer.survival, layer.name))[:_WORST]
    return {
        "layers": len(lifted),
        "dtype": lifted[0].after,
        "worst": {layer.name: float(f"{layer.survival:.4g}") for layer in worst},
    }


class _Nowhere:
    """The place of an output that nobody needs."""

    def write(self, data: memoryview, position: int) -> None:
        """Take no notice of it."""


def _measured(file: FilePlan, lift: str) -> Iterator[LayerSurvival]:
    """The survival of each layer of the file that may be raised."""
    from paramerge.bake.tasks import make_tasks
    from paramerge.bake.workers import run_tasks

    keys = {tensor.info.key for tensor in file.tensors if _may_need(tensor, lift)}
    wanted = [
        tensor for tensor in file.tensors if not keys.isdisjoint((tensor.info.key, tensor.written_with))
    ]
    tasks = iter(make_tasks(wanted, 0))
    for layer in run_tasks(file.source.header.source, _Nowhere(), tasks, lambda _: None):
        if layer.survival is not None:
            yield layer.survival


def _may_need(tensor: TensorPlan, lift: str) -> bool:
    if tensor.encoding is not None:
        return bool(tensor.edits)
    return bool(tensor.edits) and is_float(tensor.dtype) and unit_roundoff(lift) < unit_roundoff(tensor.dtype)


def _raised(file: FilePlan, lift: str, low: dict[str, LiftedLayer]) -> FilePlan:
    """The plan of a file with those of its tensors raised that hold a layer in ``low``."""
    raised = {
        tensor.info.key
        for tensor in file.tensors
        if _may_need(tensor, lift) and any(str(edit.target.module) in low for edit in tensor.edits)
    }
    coded = {t.info.key for t in file.tensors if t.info.key in raised and t.encoding is not None}
    file = without_codes(file, coded, lift) if coded else file
    return replace(
        file, tensors=tuple(replace(t, dtype=lift) if t.info.key in raised else t for t in file.tensors)
    )
