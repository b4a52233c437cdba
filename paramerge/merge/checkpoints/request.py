"""A user's request, as names and paths: opened and checked it is a graph of merges, and a plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from paramerge.apply.given import PathLike, opened_base, path_of
from paramerge.apply.steps import BakeOptions, Step, parse_step
from paramerge.checkpoints.layout import open_component
from paramerge.errors import CheckpointError, UsageError
from paramerge.files.dtype_names import KEEP
from paramerge.merge.checkpoints.graph import MergeGraph, MergeStep
from paramerge.merge.checkpoints.plan import plan_merge
from paramerge.merge.methods.registry import named_method
from paramerge.models.names import COMPONENTS
from paramerge.resolve.blocks import BlockWeights, parse_blocks
from paramerge.wording import option

if TYPE_CHECKING:
    from paramerge.adapters import Adapter
    from paramerge.bake.plan import Plan
    from paramerge.checkpoints.layout import Base


@dataclass(frozen=True)
class RequestedStep:
    """A requested merge: ``inputs`` are numbers of models and earlier steps, models first."""

    method: str
    inputs: tuple[int, ...]
    given: Mapping[str, object] = field(default_factory=dict)
    """The parameters that were given."""
    blocks: Mapping[int, BlockWeights] = field(default_factory=dict)
    """By the place of an input, from 0."""
    name: str = ""

    def checked(self) -> MergeStep:
        """The step with its method and all parameters.

        Raises
        ------
        UsageError
        """
        method = named_method(self.method)
        method.check_count(len(self.inputs), self.name or None)
        if self.blocks and method.weighted is None and "strength" not in {p.name for p in method.parameters}:
            raise UsageError(
                f"{method.name} has neither weights nor a strength, which blocks could change",
                where=option("blocks"),
            )
        parameters = method.read(self.given, len(self.inputs), by_block=bool(self.blocks))
        return MergeStep(method, self.inputs, parameters, self.blocks)


@dataclass(frozen=True)
class MergeRequest:
    """The whole request. Paths of ``models`` and ``components`` are not opened yet."""

    models: tuple[PathLike | Base, ...]
    steps: tuple[RequestedStep, ...] = ()
    components: Mapping[str, PathLike] = field(default_factory=dict)
    options: BakeOptions = field(default_factory=BakeOptions)
    prune: bool = False
    variant: str | None = None

    def plan(self, adapters: Sequence[tuple[Step, Adapter]] = ()) -> Plan:
        """Open the models and plan every tensor of the output.

        Raises
        ------
        ParamergeError
            See :func:`paramerge.merge.checkpoints.plan.plan_merge`.
        """
        if not (self.steps or self.components or adapters or self.prune or self.options.dtype != KEEP):
            raise UsageError(
                "there is one model, and nothing to do with it",
                where=str(getattr(self.models[0], "path", self.models[0])),
                expected="two models or more, a component, an adapter, another dtype or something to prune",
            )
        steps = tuple(step.checked() for step in self.steps)
        models = [opened_base(model, self.variant if _is_folder(model) else None) for model in self.models]
        components: dict[str, int] = {}
        moved = len(self.components)
        for component, path in self.components.items():
            name = _meant(component, models[0])
            components[name] = len(self.models) + len(components)
            models.append(_with_component(path, name))
        count = len(self.models)
        steps = tuple(
            MergeStep(
                step.method,
                tuple(index if index < count else index + moved for index in step.inputs),
                step.parameters,
                step.blocks,
            )
            for step in steps
        )
        return plan_merge(models, MergeGraph(steps, components, self.prune), adapters, self.options)


def request_of(
    models: Sequence[PathLike | Base],
    method: str | None,
    given: Mapping[str, object],
    *,
    blocks: BlockWeights | Mapping[str, float] | str | None = None,
    components: Mapping[str, PathLike] | None = None,
    options: BakeOptions = BakeOptions(),  # noqa: B008 - it cannot change
    prune: bool = False,
    variant: str | None = None,
) -> MergeRequest:
    """One merge of all models; text may have a weight and weights by block: ``b.safetensors@0.3:MID=1``.

    ``blocks`` are those of the last model, or of the method's strength.
    """
    split = [_split(model) for model in models]
    paths = tuple(path for path, _, _ in split)
    weights = [weight for _, weight, _ in split]
    by_block = {place: own for place, (_, _, own) in enumerate(split) if own is not None}
    if blocks is not None:
        by_block[len(models) - 1] = _blocks(blocks)
    if any(weight is not None for weight in weights):
        if "weights" in given:
            raise UsageError("weights are given twice", where=option("weights"), found="behind a model, too")
        given = {**given, "weights": _weights(paths, weights)}
    steps: tuple[RequestedStep, ...] = ()
    if len(models) > 1 or method is not None:
        steps = (RequestedStep(method or "weighted-sum", tuple(range(len(models))), given, by_block),)
    elif given or by_block:
        raise UsageError("there is one model, and nothing to merge it with", where=paths[0])
    return MergeRequest(paths, steps, dict(components or {}), options, prune, variant)


def _split(model: PathLike | Base) -> tuple[PathLike | Base, float | None, BlockWeights | None]:
    if not isinstance(model, str) or os.path.exists(model) or "@" not in model:  # noqa: PTH110
        return model, None, None
    step = parse_step("adapter", model)
    return step.path, step.strength, step.blocks


def _weights(paths: Sequence[PathLike | Base], weights: Sequence[float | None]) -> tuple[float, ...]:
    """All weights, or all but the first one's."""
    given = tuple(weight for weight in weights if weight is not None)
    if None in weights[1:]:
        raise UsageError(
            "some models have a weight and others have none",
            where=path_of(paths[weights.index(None, 1)]),  # type: ignore[arg-type]
            expected="a weight for each, or for each but the first",
        )
    return given


def _blocks(given: BlockWeights | Mapping[str, float] | str) -> BlockWeights:
    if isinstance(given, BlockWeights):
        return given
    if isinstance(given, Mapping):
        given = ",".join(f"{name}={weight!r}" for name, weight in given.items())
    return parse_blocks(given)


def _is_folder(model: PathLike | Base) -> bool:
    return isinstance(model, (str, os.PathLike)) and Path(model).is_dir()


def _meant(component: str, first: Base) -> str:
    """``unet`` is the transformer of a model that has one."""
    if component not in COMPONENTS:
        raise UsageError(
            "no such component", where="components", expected=", ".join(COMPONENTS), found=component
        )
    present = {name for file in first.files for name in file.components.values()}
    return "transformer" if component == "unet" and "unet" not in present else component


def _with_component(path: PathLike, component: str) -> Base:
    """A checkpoint that has the component, or a file with that alone."""
    try:
        base = opened_base(path)
    except CheckpointError:
        if Path(path).is_dir():
            raise
        return open_component(path, component)
    if component in {name for file in base.files for name in file.components.values()}:
        return base
    return open_component(path, component) if not base.is_folder else base
