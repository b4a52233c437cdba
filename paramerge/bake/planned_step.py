"""A step of a bake with its adapter opened: which of its layers meet which of the base's."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from paramerge.adapters import Adapter, Leftover
from paramerge.apply.steps import BakeOptions, Kind, Step
from paramerge.checkpoints.layout import Base
from paramerge.checkpoints.targets import Target
from paramerge.errors import UsageError
from paramerge.models.names import ModuleName
from paramerge.models.spelling import other_names
from paramerge.resolve.blocks import BlockUse, used_blocks
from paramerge.resolve.matching import check_family, check_shape, check_unmatched
from paramerge.resolve.naming import homes_of, in_names_of
from paramerge.resolve.row_order import in_row_order
from paramerge.wording import option


@dataclass(frozen=True)
class PlannedStep:
    """A step with its adapter opened: which of its layers are applied and which are not."""

    step: Step
    adapter: Adapter = field(repr=False)
    matched: tuple[ModuleName, ...] = field(repr=False)
    excluded: tuple[ModuleName, ...] = field(repr=False, default=())
    unmatched: tuple[ModuleName, ...] = field(repr=False, default=())
    weights: Mapping[ModuleName, float] = field(repr=False, default_factory=dict)
    """Factors on the strength of each layer, where the step has block weights."""
    blocks: tuple[BlockUse, ...] = ()
    """The weights by block, with the layers that each holds."""

    def strength_at(self, name: ModuleName) -> float:
        """The step's strength on the layer ``name``."""
        return self.step.strength * self.weights.get(name, 1.0)

    @property
    def largest_strength(self) -> float:
        """The strength that is farthest from 0, over all layers."""
        return max((self.step.strength, *map(self.strength_at, self.weights)), key=abs)

    @property
    def leftovers(self) -> tuple[Leftover, ...]:
        """Keys of the file that are no layer of the adapter."""
        return self.adapter.leftovers


def _resolved(step: Step, adapter: Adapter) -> Step:
    """The step with the kind that the file is, whichever option it was given to."""
    kind: Kind = "adapter"
    if adapter.family in ("para", "lora"):
        kind = "para" if adapter.family == "para" else "lora"
    return replace(step, kind=kind)


def is_selected(name: ModuleName, only: Iterable[str], architecture: str = "") -> bool:
    """Whether ``name`` is within ``only`` (component names and patterns; nothing given selects all).

    A pattern may be of any naming that the layers of ``architecture`` have.
    """
    patterns = tuple(only)
    return not patterns or any(
        name.component == pattern or fnmatch.fnmatchcase(str(each), pattern)
        for each in (name, *other_names(architecture, name))
        for pattern in patterns
    )


def selection_hint(only: Iterable[str], names: Iterable[ModuleName]) -> str:
    """The next step where ``only`` selects none of ``names``: patterns match whole names."""
    within = tuple(f"*{pattern}*" for pattern in only)
    if any(is_selected(name, within) for name in names):
        return f"for names that have it in them: {' '.join(option('only', shlex.quote(p)) for p in within)}"
    return "give a component (unet, text_encoder ...) or a pattern such as 'unet.*attn2*'"


def _is_excluded(
    name: ModuleName,
    targets: Mapping[ModuleName, Target],
    present: Iterable[str],
    only: Iterable[str],
    architecture: str,
) -> bool:
    """Whether ``only`` leaves the layer out: one that the base has, or of a model that the base has not.

    A layer that is missing from a model of the base is neither, selected or not.
    """
    if is_selected(name, only, architecture):
        return False
    return name in targets or not homes_of(name, present)


def match_step(
    base: Base, targets: Mapping[ModuleName, Target], step: Step, adapter: Adapter, options: BakeOptions
) -> PlannedStep:
    """Match the layers of ``adapter`` with the base's ``targets``.

    Raises
    ------
    ArchitectureError, UnmatchedError, ShapeError
        The adapter does not belong to this base, or not all of it does.
    UsageError
        Nothing of it is selected, or its block weights are not for this base.
    """
    step = _resolved(step, adapter)
    if not options.allow_other_model:
        check_family(base, targets, adapter)
    model = base.architecture
    adapter = in_names_of(base, targets, adapter, lambda name: is_selected(name, options.only, model))
    present = {name.component for name in targets}
    excluded = tuple(n for n in adapter.modules if _is_excluded(n, targets, present, options.only, model))
    left_out = set(excluded)
    wanted = [name for name in adapter.modules if name not in left_out]
    matched = tuple(name for name in wanted if name in targets)
    unmatched = tuple(n for n in wanted if n not in targets and not adapter.modules[n].optional)
    if options.only and not any(is_selected(name, options.only, model) for name in adapter.modules):
        raise UsageError(
            "nothing of this adapter is selected",
            where=adapter.path,
            expected=f"layers that match {option('only')} {' '.join(options.only)}",
            found=", ".join(sorted({name.component for name in adapter.modules})),
            hint=selection_hint(options.only, adapter.modules),
        )
    check_unmatched(base, targets, adapter, matched, unmatched, allowed=options.allow_unmatched)
    adapter = in_row_order(base, adapter, matched)
    for name in matched:
        check_shape(base, targets[name], adapter, adapter.modules[name])
    weights: Mapping[ModuleName, float] = {}
    blocks: tuple[BlockUse, ...] = ()
    if step.blocks is not None:
        weights, blocks = used_blocks(step.blocks, matched, base.architecture, adapter.path)
    return PlannedStep(step, adapter, matched, excluded, unmatched, weights, blocks)
