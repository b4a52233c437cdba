"""A plan in figures, for ``--dry-run`` to print and ``--json`` to give to programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from paramerge.adapters import ParaModule
from paramerge.apply.operations import Edit, FamilyOp
from paramerge.apply.tensor_plan import TensorPlan
from paramerge.bake.lift import LiftedLayer
from paramerge.bake.merged_models import MergedModels
from paramerge.bake.plan import Plan
from paramerge.bake.planned_step import PlannedStep
from paramerge.bake.tasks import BUFFER_BYTES, WORKERS
from paramerge.resolve.blocks import BlockUse

_RUNTIME_BYTES = 235 << 20
"""Python with torch (CPU build) loaded and its work areas touched."""

_WORKER_BYTES = BUFFER_BYTES + (4 << 20)


@dataclass(frozen=True)
class StepSummary:
    """One step: its adapter, and the layers to which it is applied."""

    kind: str
    file: str
    strength: float
    dialect: str
    layers: int
    layers_by_component: dict[str, int]
    layers_excluded: int
    ranks: dict[int, int]
    family: str
    families: dict[str, int]
    depends_on_weight: int
    """Layers whose change depends on the weight that the steps before it left."""
    blocks: tuple[BlockUse, ...]
    unmatched: tuple[str, ...]
    leftovers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ComponentSummary:
    """One component of the base: its tensors and bytes, and the layers that each step changes in it."""

    component: str
    tensors: int
    edited: int
    converted: int
    bytes_in: int
    bytes_out: int
    dtypes_in: dict[str, int]
    dtypes_out: dict[str, int]
    layers_by_step: tuple[int, ...]
    largest_rank: int


@dataclass(frozen=True)
class MergedSummary:
    """The models that were merged, in order, the merges, and how many tensors that makes."""

    models: tuple[str, ...]
    steps: tuple[Mapping[str, object], ...]
    components: dict[str, str]
    tensors: dict[str, int]


@dataclass(frozen=True)
class PlanSummary:
    """The whole plan in figures."""

    base: str
    layout: str
    architecture: str
    steps: tuple[StepSummary, ...]
    components: tuple[ComponentSummary, ...]
    options: dict[str, object]
    companions: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    layers_left_alone: tuple[str, ...]
    layers_held_whole: int
    """Layers that are in memory as a whole, one at a time, since a step depends on all of the weight."""
    bytes_in: int
    bytes_out: int
    peak_memory_bytes: int
    merged: MergedSummary | None = None
    lifted: tuple[LiftedLayer, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        return asdict(self)


def summarise(plan: Plan) -> PlanSummary:
    """Summarise a plan, from the plan alone."""
    tensors = [tensor for file in plan.files for tensor in file.tensors]
    order = list(dict.fromkeys(tensor.component for tensor in tensors))
    components = tuple(
        _component(name, [t for t in tensors if t.component == name], len(plan.steps)) for name in order
    )
    options = asdict(plan.options)
    return PlanSummary(
        base=plan.base.path.name,
        layout=plan.base.layout,
        architecture=plan.base.architecture,
        steps=tuple(_step(step) for step in plan.steps),
        components=components,
        options=options,
        companions=tuple(map(str, plan.base.companions)),
        left_out=tuple((str(path), reason) for path, reason in plan.base.left_out),
        warnings=(*plan.order_warnings, *plan.warnings),
        layers_left_alone=tuple(map(str, plan.left_alone)),
        layers_held_whole=sum(edit.needs_whole for edit in plan.edits),
        bytes_in=sum(tensor.info.nbytes for tensor in tensors),
        bytes_out=plan.output_bytes,
        peak_memory_bytes=_peak_memory(plan, tensors),
        merged=_merged(plan.merged) if plan.merged is not None else None,
        lifted=plan.lifted,
    )


def _merged(merged: MergedModels) -> MergedSummary:
    names = tuple(model.path.name for model in merged.models)
    return MergedSummary(names, merged.steps, dict(merged.components), dict(merged.counts))


def _step(step: PlannedStep) -> StepSummary:
    ranks = Counter(step.adapter.modules[name].rank for name in step.matched)
    return StepSummary(
        kind=step.step.kind,
        file=step.adapter.path.name,
        strength=step.step.strength,
        dialect=step.adapter.dialect,
        layers=len(step.matched),
        layers_by_component=dict(Counter(name.component for name in step.matched)),
        layers_excluded=len(step.excluded),
        ranks=dict(sorted(ranks.items())),
        family=step.adapter.family,
        families=dict(step.adapter.families),
        depends_on_weight=sum(
            module.depends_on_weight
            for name in step.matched
            if not isinstance(module := step.adapter.modules[name], ParaModule)
        ),
        blocks=step.blocks,
        unmatched=tuple(map(str, step.unmatched)),
        leftovers=tuple((key, leftover.reason) for leftover in step.leftovers for key in leftover.keys),
    )


def _component(name: str, tensors: Sequence[TensorPlan], steps: int) -> ComponentSummary:
    edits = [edit for tensor in tensors for edit in tensor.edits]
    by_step = Counter(step for edit in edits for op in edit.ops for step in op.steps)
    return ComponentSummary(
        component=name,
        tensors=len(tensors),
        edited=sum(bool(tensor.edits) for tensor in tensors),
        converted=sum(tensor.converted for tensor in tensors),
        bytes_in=sum(tensor.info.nbytes for tensor in tensors),
        bytes_out=sum(tensor.nbytes for tensor in tensors),
        dtypes_in=dict(Counter(tensor.info.dtype for tensor in tensors)),
        dtypes_out=dict(Counter(tensor.dtype for tensor in tensors)),
        layers_by_step=tuple(by_step[step] for step in range(steps)),
        largest_rank=max((_rank_of_all(edit) for edit in edits), default=0),
    )


def _rank_of_all(edit: Edit) -> int:
    """The ranks of a layer's operations together; no more than the layer's own where one is not low."""
    full = min(edit.target.shape[0], math.prod(edit.target.shape[1:]))
    ranks = [op.rank for op in edit.ops]
    known = sum(rank for rank in ranks if rank is not None)
    return full if None in ranks else known if not _has_family(edit) else min(known, full)


def _has_family(edit: Edit) -> bool:
    return any(isinstance(op, FamilyOp) for op in edit.ops)


def _peak_memory(plan: Plan, tensors: Sequence[TensorPlan]) -> int:
    """An estimate: the runtime, and for each worker its buffers and the largest layer's factors."""
    largest = max((8 * sum(op.numbers for op in edit.ops) for edit in plan.edits), default=0)
    row = max((t.info.nbytes // max(1, t.info.shape[0]) for t in tensors if t.info.shape), default=0)
    headers = 2_000 * len(tensors)
    worker = _WORKER_BYTES + 3 * largest + max(0, row - BUFFER_BYTES)
    whole = max(map(_whole_bytes, plan.edits), default=0)
    return _RUNTIME_BYTES + headers + WORKERS * worker + whole


def _whole_bytes(edit: Edit) -> int:
    """Memory for a layer that is held as a whole in float64: itself, its result, and intermediate values."""
    if not edit.needs_whole:
        return 0
    elements = math.prod(edit.target.shape)
    return 8 * elements * max(op.module.copies for op in edit.ops if isinstance(op, FamilyOp))
