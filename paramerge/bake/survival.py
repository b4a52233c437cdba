"""The part of each step that the output keeps: in the report and the recipe, warned of, and refused.

A step as a whole is all its layers together, each weighted by the energy of its change (``<d, d>``): a layer
that hardly changes counts hardly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from paramerge.apply.dense import LayerResult
from paramerge.apply.survival import LayerSurvival, Share, pooled
from paramerge.bake.plan import Plan
from paramerge.errors import LossError
from paramerge.wording import Worded, option

WARNED = 0.9
"""Layers that keep less of a step are warned of, and raised by ``lift``."""

REFUSED = 0.5
"""A step that keeps less as a whole is an error."""

_WORST = 5
"""Layers of a step that are named."""

_WIDEST = -1234000000000000.0
"""A number with as many characters as one in the recipe can have."""


@dataclass(frozen=True)
class StepSurvival:
    """The written part of one step's change (:mod:`paramerge.apply.survival` has the formula).

    Attributes
    ----------
    file:
        The adapter's name, or ``merge``.
    survival:
        Over all layers; None where the step changes nothing.
    deviation:
        Two standard deviations of it, where rows were sampled; else 0.
    layers:
        By layer that it changes.
    """

    file: str
    survival: float | None
    deviation: float
    layers: Mapping[str, float] = field(repr=False)

    @property
    def low(self) -> dict[str, float]:
        """The layers that keep too little, the worst first."""
        found = [(name, value) for name, value in self.layers.items() if value < WARNED]
        return dict(sorted(found, key=lambda item: (item[1], item[0])))


@dataclass(frozen=True)
class Survival:
    """The written part of all steps.

    Attributes
    ----------
    steps:
        In the order of the plan's.
    error:
        ``||E||_F / ||W_n - W_0||_F`` over all layers that steps change; None where nothing changes.
    """

    steps: tuple[StepSurvival, ...]
    error: float | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """A warning for each step of which a layer keeps too little."""
        return tuple(map(_warning, (step for step in self.steps if step.low)))

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data: every step, its layers apart."""
        return {
            "steps": [
                {
                    "step": number,
                    "file": step.file,
                    "survival": step.survival,
                    "deviation": step.deviation,
                    "layers": len(step.layers),
                    "low": step.low,
                }
                for number, step in enumerate(self.steps, 1)
            ],
            "error": self.error,
        }

    def for_recipe(self) -> dict[str, object]:
        """A bounded entry: of each step the figures and its worst layers, four digits each."""
        steps = [
            {
                "survival": _digits(step.survival),
                "deviation": _digits(step.deviation),
                "low": len(step.low),
                "worst": {name: _digits(value) for name, value in list(step.low.items())[:_WORST]},
            }
            for step in self.steps
        ]
        return {"steps": steps, "error": _digits(self.error)}


def survival_of(plan: Plan, layers: Sequence[LayerResult]) -> Survival:
    """The survival of the plan's steps, for the outcome of its layers."""
    found = [layer.survival for layer in layers if layer.survival is not None]
    names = plan.names[len(plan.names) - len(plan.steps) :]
    steps = tuple(_step(index, name.name, found) for index, name in enumerate(names))
    change = math.fsum(layer.change for layer in found)
    error = math.sqrt(math.fsum(layer.lost for layer in found) / change) if change else None
    return Survival(steps, error)


def widest(plan: Plan) -> dict[str, object]:
    """An entry for the recipe that is at least as long as any that the plan can have."""
    names: list[list[str]] = [[] for _ in plan.steps]
    for edit in plan.edits:
        for step in {step for op in edit.ops for step in op.steps}:
            names[step].append(str(edit.target.module))
    entries = [
        {
            "survival": _WIDEST,
            "deviation": _WIDEST,
            "low": len(layers),
            "worst": dict.fromkeys(sorted(layers, key=_written_length, reverse=True)[:_WORST], _WIDEST),
        }
        for layers in names
    ]
    return {"steps": entries, "error": _WIDEST}


def refuse_loss(survival: Survival) -> None:
    """Refuse an output that keeps less than half of a step.

    Raises
    ------
    LossError
    """
    for step in survival.steps:
        if step.survival is not None and step.survival < REFUSED:
            raise LossError(
                "the output would keep less than half of what this adapter changes",
                where=step.file,
                expected=f"at least {REFUSED:g} of its change, after rounding to the output's dtype",
                found=f"{step.survival:.3f} over {len(step.layers)} layers; the worst: {_listed(step)}",
                hint=f"write {option('dtype', 'bf16')}, raise what needs it ({option('lift', 'bf16')}), keep "
                f"the mean ({option('rounding', 'stochastic')}), or take the loss: {option('accept_loss')}",
            )


def layer_data(layer: LayerResult) -> dict[str, object]:
    """A layer's outcome, JSON-ready; survival by step, counted from 1."""
    data: dict[str, object] = {"name": layer.name, "removed": layer.removed, "rank": layer.rank}
    found = layer.survival
    if found is None:
        return data
    by_step = dict(_by_step(found))
    return data | {
        "dtype": found.dtype,
        "survival": {str(step + 1): pooled([share])[0] for step, share in by_step.items()},
        "deviation": {str(step + 1): pooled([share])[1] for step, share in by_step.items()},
        "error": found.error,
        "sampled": found.sampled,
    }


def _step(index: int, name: str, layers: Sequence[LayerSurvival]) -> StepSurvival:
    shares = {layer.layer: share for layer in layers for step, share in _by_step(layer) if step == index}
    ratio, deviation = pooled(shares.values())
    values = {layer: value for layer, share in shares.items() if (value := pooled([share])[0]) is not None}
    return StepSurvival(name, ratio, deviation, values)


def _by_step(layer: LayerSurvival) -> Iterator[tuple[int, Share]]:
    for share in layer.shares:
        for step in share.steps:
            yield step, share


def _warning(step: StepSurvival) -> Worded:
    return Worded(
        f"{step.file}: {len(step.low)} of {len(step.layers)} layers keep less than {WARNED:g} of its change, "
        f"which is too small for the output's dtype: {_listed(step)}; {option('lift', 'bf16')} raises them"
    )


def _listed(step: StepSurvival) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in list(step.low.items())[:3])


def _written_length(name: str) -> int:
    """Characters of a name in JSON within JSON, as a header has it."""
    return len(json.dumps(json.dumps(name)))


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
