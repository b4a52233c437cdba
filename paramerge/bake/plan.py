"""From headers to a plan for each tensor, before any tensor is read.

The plan is plain data. It can be printed (``--dry-run``), tested, and written into the output as the recipe;
:mod:`paramerge.bake.bake` only carries it out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from paramerge.adapters import Adapter, LoraModule, ParaModule
from paramerge.algebra import adjusted_rank
from paramerge.apply.cautions import already_baked, given_twice, lost_in_fp8, unusual_strengths
from paramerge.apply.operations import Edit, FamilyOp, LoraOp, Op, ParaOp, ParaPart
from paramerge.apply.steps import BakeOptions, Step
from paramerge.apply.tensor_plan import FilePlan, TensorPlan
from paramerge.apply.true_values import TrueValues
from paramerge.apply.values import Values
from paramerge.bake.history import earlier_recipe
from paramerge.bake.input_names import InputNames, names_of
from paramerge.bake.lift import LiftedLayer, lift_layers
from paramerge.bake.merged_models import MergedModels
from paramerge.bake.planned_step import PlannedStep, match_step
from paramerge.bake.quantised_layers import DEQUANTISED, StoragePlan, plan_storage
from paramerge.checkpoints.layout import Base, WeightFile
from paramerge.checkpoints.targets import Target
from paramerge.errors import UsageError
from paramerge.files.dtype_names import parse_dtype
from paramerge.files.dtypes import is_float
from paramerge.files.header import TensorInfo
from paramerge.interpretation import Interpretation
from paramerge.models.names import COMPONENTS, ModuleName
from paramerge.resolve.matching import is_of_another
from paramerge.storage.quantised import Quantised
from paramerge.storage.scheme import not_read
from paramerge.wording import Worded, option

if TYPE_CHECKING:  # planning needs no torch
    from paramerge.bake.bake import BakeReport

ALWAYS_HASHED_BYTES = 64 << 20
"""The content of an output up to this size is hashed by default, which takes no time to speak of; with SDXL's
the processor has a third more to do."""


@dataclass(frozen=True)
class Plan:
    """Everything that a bake will do."""

    base: Base
    steps: tuple[PlannedStep, ...]
    options: BakeOptions
    files: tuple[FilePlan, ...] = field(repr=False)
    left_alone: tuple[ModuleName, ...] = field(repr=False, default=())
    warnings: tuple[str, ...] = ()
    order_warnings: tuple[str, ...] = ()
    """On LoRAs before PaRas; :mod:`paramerge.bake.diagnose` puts a number to them."""
    merged: MergedModels | None = None
    """The checkpoints that the base's values are made of, where it is a merge."""
    called: tuple[InputNames, ...] = field(repr=False, default=())
    """The names of all inputs, where the output is to have others than the files have."""
    lifted: tuple[LiftedLayer, ...] = field(repr=False, default=())
    """Layers that are written in a finer dtype than they would have."""

    @property
    def names(self) -> tuple[InputNames, ...]:
        """The names of :attr:`opened` in titles and in the recipe."""
        return self.called or names_of(self.opened)

    @property
    def edits(self) -> list[Edit]:
        """All edited layers, in file order."""
        return [edit for file in self.files for tensor in file.tensors for edit in tensor.edits]

    @property
    def opened(self) -> tuple[Base | Adapter, ...]:
        """All inputs."""
        others = self.merged.others if self.merged is not None else ()
        return (self.base, *others, *(step.adapter for step in self.steps))

    @property
    def dequantised(self) -> tuple[Quantised, ...]:
        """The quantised layers that are written as plain numbers."""
        return tuple(dict.fromkeys(layer for file in self.files for layer in file.dequantised))

    @property
    def output_bytes(self) -> int:
        """Bytes of all weights in the output (headers and companion files not counted)."""
        return sum(tensor.nbytes for file in self.files for tensor in file.tensors)

    @property
    def has_content_hash(self) -> bool:
        """Whether the recipe gets a hash of all tensors of the output."""
        wanted = self.options.content_hash
        return self.output_bytes <= ALWAYS_HASHED_BYTES if wanted is None else wanted

    @property
    def interpretation(self) -> Interpretation | None:
        """The user's decisions where trainers disagree; None where the adapters were opened differently."""
        found = {step.adapter.interpretation for step in self.steps}
        return found.pop() if len(found) == 1 else None

    def write(
        self,
        output: str | os.PathLike[str],
        progress: Callable[[int, int], None] | None = None,
        *,
        overwrite: bool = False,
        base_sha256: Collection[str] = (),
    ) -> BakeReport:
        """Carry it out; see :func:`paramerge.bake.bake.bake`."""
        from paramerge.bake.bake import bake

        return bake(self, output, progress, overwrite=overwrite, base_sha256=base_sha256)


@dataclass(frozen=True)
class Made:
    """The base as a merge makes it, before any step: see :mod:`paramerge.merge.checkpoints`."""

    merged: MergedModels
    values: Mapping[tuple[str, str], Values]
    """By component and key, the values of a tensor that is not the base's as it is."""
    left_out: frozenset[tuple[str, str]]
    """Component and key of tensors that are not written."""
    warnings: tuple[str, ...]


def make_plan(
    base: Base, steps: Sequence[tuple[Step, Adapter]], options: BakeOptions, made: Made | None = None
) -> Plan:
    """Plan every tensor of ``base`` from headers; with ``options.lift`` layers are read and measured.

    ``made`` is what other checkpoints are merged into it before the steps.

    Raises
    ------
    ArchitectureError, UnmatchedError, ShapeError
        An adapter does not belong to this base, or not all of it does.
    CheckpointError
        A layer that should change is stored in a form that cannot be computed on.
    """
    targets = {name: target for file in base.files for name, target in file.reachable.items()}
    planned = [match_step(base, targets, step, adapter, options) for step, adapter in steps]
    ops, left_alone = _operations(targets, planned, options)
    storage = plan_storage(base, ops, options, made.values if made is not None else {})
    files = tuple(_plan_file(file, ops, options, made, storage) for file in base.files)
    earlier = earlier_recipe(base)
    adapters = [adapter for _, adapter in steps]
    warnings = (
        *base.warnings,
        *([earlier.fault] if earlier.fault else []),
        *unusual_strengths([(step.adapter.path.name, step.largest_strength) for step in planned]),
        *given_twice(adapters),
        *_other_models(base, planned),
        *_assumed_alphas(adapters),
        *already_baked(earlier.recipe, adapters),
        *(lost_in_fp8(files) if options.rounding == "nearest" and options.lift is None else ()),
        *storage.warnings,
        *_left_alone_warnings(left_alone, options),
        *(made.warnings if made is not None else ()),
    )
    merged = made.merged if made is not None else None
    plan = Plan(base, tuple(planned), options, files, left_alone, warnings, _order_warnings(planned), merged)
    return plan if options.lift is None else lift_layers(plan)


def _operations(
    targets: Mapping[ModuleName, Target], planned: Sequence[PlannedStep], options: BakeOptions
) -> tuple[dict[ModuleName, tuple[Op, ...]], tuple[ModuleName, ...]]:
    """The operations on each layer, and the layers a step leaves alone (rank boundary, strength 0)."""
    modules = dict.fromkeys(name for step in planned for name in step.matched)
    matched = [frozenset(step.matched) for step in planned]
    result: dict[ModuleName, tuple[Op, ...]] = {}
    left_alone: list[ModuleName] = []
    for name in modules:
        ops: list[Op] = []
        for run in _runs(planned, options):
            at_layer = [index for index in run if name in matched[index]]
            if not at_layer:
                continue
            op = _operation(targets[name], planned, at_layer, name, options)
            if op is None:
                left_alone.append(name)
            else:
                ops.append(op)
        if ops:
            result[name] = tuple(ops)
    return result, tuple(dict.fromkeys(left_alone))


def _runs(planned: Sequence[PlannedStep], options: BakeOptions) -> list[list[int]]:
    """Steps that act together: neighbouring PaRas in a joint merge; every other step alone."""
    runs: list[list[int]] = []
    for index, step in enumerate(planned):
        joins = (
            options.merge == "joint"
            and step.step.kind == "para"
            and index > 0
            and planned[index - 1].step.kind == "para"
        )
        if joins:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _operation(
    target: Target,
    planned: Sequence[PlannedStep],
    indices: Sequence[int],
    name: ModuleName,
    options: BakeOptions,
) -> Op | None:
    first = planned[indices[0]]
    module = first.adapter.modules[name]
    strength = first.strength_at(name)
    if module.scale == 0 and not module.depends_on_weight:  # an alpha of 0
        return None
    if isinstance(module, LoraModule):
        return LoraOp(indices[0], module, strength) if strength else None
    if not isinstance(module, ParaModule):
        return FamilyOp(indices[0], module, strength) if strength else None
    parts = []
    for index in indices:
        module = planned[index].adapter.modules[name]
        strength = planned[index].strength_at(name)
        if isinstance(module, ParaModule) and strength != 0:
            parts.append(ParaPart(index, module, strength))
    if not parts:
        return None
    limit = None
    if options.gamma is not None:
        # A trained weight has full rank, and stored in 16 bits always (T14): rank(W0) = min(d, k).
        full = min(target.shape[0], math.prod(target.shape[1:]))
        limit = adjusted_rank(full, options.gamma, full)
        if limit == 0:
            return None
    return ParaOp(tuple(parts), limit)


def _plan_file(
    file: WeightFile,
    ops: Mapping[ModuleName, tuple[Op, ...]],
    options: BakeOptions,
    made: Made | None,
    storage: StoragePlan,
) -> FilePlan:
    edits: dict[str, list[Edit]] = {}
    for name, target in file.reachable.items():
        if name in ops:
            edits.setdefault(target.key, []).append(Edit(target, ops[name]))
    tensors = []
    for key, info in file.header.tensors.items():
        component = file.components[key]
        if (made is not None and (component, key) in made.left_out) or storage.drops(file, key):
            continue
        values = made.values.get((component, key)) if made is not None else None
        at_key = tuple(edits.get(key, ()))
        if at_key:
            _check_stack(file, at_key)
        layer, encoding = storage.layer(file, key), storage.encoding(file, key)
        dtype = _output_dtype(info, component, options)
        if layer is not None:
            dtype = DEQUANTISED if options.dtype == "keep" else parse_dtype(options.dtype)
            values = TrueValues(layer) if values is None else values
        elif at_key and not is_float(info.dtype):
            raise not_read(f"{file.header.path}: {key}", f"codes of {info.dtype}")
        shape = layer.shape if layer is not None else None
        dtype = encoding.dtype if encoding is not None else dtype
        changed = bool(at_key) or (made is not None and (component, key) in made.values)
        rounding = options.rounding if changed else "nearest"
        if encoding is not None and rounding == "stochastic":
            encoding = replace(encoding, rounding=rounding)
        tensors.append(TensorPlan(info, component, dtype, at_key, values, shape, encoding, rounding=rounding))
        tensors += _with_codes(tensors[-1])
    return FilePlan(file, tuple(tensors), storage.layers_in(file))


def _with_codes(codes: TensorPlan) -> Iterator[TensorPlan]:
    """The new scales and marks that are written with codes."""
    for part in codes.encoding.parts if codes.encoding is not None else ():
        info = TensorInfo(part.key, part.dtype, part.shape, codes.info.stop, codes.info.stop)
        yield TensorPlan(info, codes.component, part.dtype, (), written_with=codes.info.key)


def _check_stack(file: WeightFile, edits: Sequence[Edit]) -> None:
    """Refuse to change stacked projections as one layer and one by one: nothing says which comes first."""
    if len(edits) > 1 and any(edit.target.stack for edit in edits):
        raise UsageError(
            "one adapter changes stacked projections as one layer, another changes them one by one",
            where=f"{file.header.path}: {edits[0].target.key}",
            found=", ".join(str(edit.target.module) for edit in edits),
            hint="bake them one after the other, each into the output of the one before",
        )


def _output_dtype(info: TensorInfo, component: str, options: BakeOptions) -> str:
    if options.dtype == "keep" or component not in COMPONENTS or not is_float(info.dtype):
        return info.dtype
    return parse_dtype(options.dtype)


def _order_warnings(planned: Sequence[PlannedStep]) -> tuple[str, ...]:
    warnings = []
    for index, later in enumerate(planned):
        earlier = [
            p for p in planned[:index] if p.step.kind != "para" and set(p.matched) & set(later.matched)
        ]
        if later.step.kind == "para" and later.step.strength and earlier:
            names = ", ".join(p.adapter.path.name for p in earlier)
            warnings.append(
                f"{names} comes before the PaRa {later.adapter.path.name}, which removes the part of it in "
                "its own directions; the paper asks for PaRa first"
            )
    return tuple(dict.fromkeys(warnings))


def _other_models(base: Base, planned: Sequence[PlannedStep]) -> list[str]:
    return [
        f"{step.adapter.path.name} was made for {step.adapter.architecture}, and {len(step.matched)} of its "
        f"{len(step.adapter.modules)} layers are in this {base.architecture}, with the same sizes: trained "
        "on another model, it may do little or something else"
        for step in planned
        if is_of_another(base, step.adapter)
    ]


def _assumed_alphas(adapters: Sequence[Adapter]) -> list[str]:
    return [
        Worded(
            f"{adapter.path.name} is PEFT's, without the configuration that has its alpha: the rank is "
            f"taken, so that the scale is 1; {option('alpha', 'N')} says another"
        )
        for adapter in adapters
        if adapter.dialect == "peft" and len(adapter.opened) == 1 and not adapter.interpretation.alpha
    ]


def _left_alone_warnings(left_alone: Sequence[ModuleName], options: BakeOptions) -> tuple[str, ...]:
    if not left_alone:
        return ()
    reason = "their strength or their alpha is 0"
    if options.gamma is not None:
        reason = f"gamma {options.gamma:g} of their rank is less than one direction, or {reason}"
    return (f"{len(left_alone)} layers are left alone by a step: {reason}",)
