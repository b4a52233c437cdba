"""``explain``: the adapters that a checkpoint is made of, their strengths and order, and what is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from paramerge.checkpoints.layout import Base
from paramerge.errors import ParamergeError
from paramerge.explain.candidates import Candidate
from paramerge.explain.claims import base_warnings, compare_claims, contradicts, recipe_in
from paramerge.explain.findings import (
    AdapterFinding,
    Claim,
    Explanation,
    GoneDirections,
    LayerFinding,
    OrderFinding,
)
from paramerge.explain.layer_fit import LayerFit, inverse
from paramerge.explain.ordering import Ordering, find_order
from paramerge.explain.strengths import BAR, Strengths, combined
from paramerge.explain.survey import Survey, survey
from paramerge.explain.untouched import largest_unseen
from paramerge.explain.verdicts import Judged, judge
from paramerge.extract.difference import Differences
from paramerge.files.source import check_unchanged
from paramerge.models.names import ModuleName

Progress = Callable[[int, int], None]

_MOST_LOOKS = 3


def explain(
    tuned: Base,
    base: Base,
    candidates: Sequence[Candidate],
    progress: Progress = lambda done, total: None,
    left_out: Mapping[str, str] | None = None,
) -> Explanation:
    """Explain the change from ``base`` to ``tuned`` by the ``candidates``, one layer in memory at a time.

    Raises
    ------
    ArchitectureError, UnmatchedError, ShapeError
        The checkpoints are not of one kind.
    NonFiniteError
        NaN or Inf in a weight or an adapter.
    CheckpointError
        A weight is stored in a form that cannot be computed on.
    InputChangedError
        A file was written to or replaced since it was opened.
    """
    differences = Differences(base, tuned)
    seen = survey(differences, candidates, progress)
    fits = first = {layer.name: layer.fit for layer in seen.layers}
    strengths, judged = _judged(fits, len(candidates))
    ordering = Ordering((), {}, ())
    for _ in range(_MOST_LOOKS):  # in the right order more may be seen to be there, rarely
        there = _there(strengths, judged)
        if there.keys() == {place for step in ordering.order for place in step}:
            break
        ordering = find_order(differences, seen.layers, candidates, there, progress)
        fits = {**first, **ordering.fits}
        strengths, judged = _judged(fits, len(candidates))
    finder = _Finder(differences, candidates, seen, fits, strengths, judged)
    order = _order_finding(ordering, candidates)
    ranked = [place for step in ordering.order for place in step]
    verdicts = ("there", "unclear", "absent")
    ranked += sorted(judged.keys() - set(ranked), key=lambda i: (verdicts.index(judged[i].verdict), i))
    adapters = tuple(finder.adapter(place) for place in ranked)
    layers = tuple(finder.layer(name) for name in fits)
    beside = tuple(differences.changed_beside())
    claims, warnings = _claims(tuned, base, candidates, adapters, order)
    check_unchanged(tuned, base, *(candidate.adapter for candidate in candidates))
    return Explanation(
        file=tuned.path.name,
        base=base.path.name,
        architecture=base.architecture,
        adapters=adapters,
        order=order,
        layers=layers,
        unchanged=len(seen.unchanged),
        beside=beside,
        left_out=dict(left_out or {}),
        claims=claims,
        warnings=(*(f"{name}: {why}" for name, why in differences.unlike.items()), *warnings),
    )


def _judged(fits: Mapping[ModuleName, LayerFit], count: int) -> tuple[Strengths, dict[int, Judged]]:
    strengths = combined(list(fits.values()), range(count))
    return strengths, judge(list(fits.values()), strengths)


def _there(strengths: Strengths, judged: Mapping[int, Judged]) -> dict[int, float]:
    return {
        place: float(value)
        for place, value in zip(strengths.places, strengths.values, strict=True)
        if judged[place].verdict == "there"
    }


def _order_finding(ordering: Ordering, candidates: Sequence[Candidate]) -> OrderFinding:
    def named(order: tuple[tuple[int, ...], ...]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(candidates[place].name for place in step) for step in order)

    return OrderFinding(named(ordering.order), ordering.matters, ordering.told, named(ordering.second))


def _claims(
    tuned: Base,
    base: Base,
    candidates: Sequence[Candidate],
    adapters: Sequence[AdapterFinding],
    order: OrderFinding,
) -> tuple[tuple[Claim, ...], list[str]]:
    try:
        recipe = recipe_in(tuned)
    except ParamergeError as error:
        return (), [f"{tuned.path.name} has a recipe that cannot be read: {error.what}"]
    if recipe is None:
        return (), []
    warnings = base_warnings(recipe, base)
    if contradicts(recipe, candidates, order):
        warnings.append("the recipe has these adapters in another order")
    return compare_claims(recipe, candidates, {finding.name: finding for finding in adapters}), warnings


class _Finder:
    """All that was found, put into words a candidate and a layer at a time."""

    def __init__(
        self,
        differences: Differences,
        candidates: Sequence[Candidate],
        seen: Survey,
        fits: Mapping[ModuleName, LayerFit],
        strengths: Strengths,
        judged: Mapping[int, Judged],
    ) -> None:
        self._differences, self._candidates, self._seen = differences, candidates, seen
        self._fits, self._strengths, self._judged = fits, strengths, judged
        self._change = math.sqrt(sum(layer.fit.change for layer in seen.layers))

    def adapter(self, place: int) -> AdapterFinding:
        """The finding on one candidate."""
        candidate, judged = self._candidates[place], self._judged[place]
        index = self._strengths.places.index(place)
        value, error = float(self._strengths.values[index]), float(self._strengths.errors[index])
        changed = [layer for layer in self._seen.layers if layer.name in candidate.modules]
        untouched = [name for name in self._seen.unchanged if name in candidate.modules]
        if not changed:
            there = [(name, candidate.modules[name]) for name in untouched]
            value, error = 0.0, largest_unseen(self._differences, there) / BAR
        own = [self._fits[layer.name] for layer in changed]
        lowest, highest = _extremes(own, place, value)
        size = sum(float(fit.gram[fit.places.index(place), fit.places.index(place)]) for fit in own)
        return AdapterFinding(
            name=candidate.name,
            family=candidate.adapter.family,
            verdict=judged.verdict,
            strength=value,
            bar=BAR * error,
            layers=len(changed) + len(untouched),
            changed=len(changed),
            uneven=place in self._strengths.uneven,
            lowest=lowest,
            highest=highest,
            share=abs(value) * math.sqrt(size) / self._change if self._change else 0.0,
            like=tuple(self._candidates[other].name for other in judged.like),
            directions=self._directions(place) if candidate.kind == "para" else None,
        )

    def layer(self, name: ModuleName) -> LayerFinding:
        """The finding on one changed layer."""
        fit = self._fits[name]
        left = fit.residual_at(self._strengths.at(fit))
        chance = fit.noise * (1 + 5 * math.sqrt(2 / fit.elements))
        errors = _errors(fit)
        names = [self._candidates[place].name for place in fit.places]
        return LayerFinding(
            name,
            math.sqrt(fit.change),
            math.sqrt(left - fit.noise) if left > chance else 0.0,
            dict(zip(names, fit.strengths.tolist(), strict=True)),
            dict(zip(names, (BAR * errors).tolist(), strict=True)),
        )

    def _directions(self, place: int) -> GoneDirections:
        counts = [layer.taken[place] for layer in self._seen.layers if place in layer.taken]
        gone, refilled, every = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
        return GoneDirections(every, gone, refilled, sum(place in layer.cut for layer in self._seen.layers))


def _errors(fit: LayerFit) -> np.ndarray:
    """Standard errors of the strengths on one layer, (n,)."""
    inverted = inverse(fit.gram)
    covariance = inverted @ fit.spread @ inverted * (fit.variance * fit.elements / fit.noise)
    errors: np.ndarray = np.sqrt(np.maximum(np.diagonal(covariance), 0))
    return errors


def _extremes(fits: Sequence[LayerFit], place: int, value: float) -> tuple[float, float]:
    """The lowest and highest strength of single layers, of those that say anything of it."""
    found = []
    for fit in fits:
        index = fit.places.index(place)
        if fit.gram[index, index] > 0 and _errors(fit)[index] < max(abs(value), 0.04) / 4:
            found.append(float(fit.strengths[index]))
    return (min(found), max(found)) if found else (math.nan, math.nan)
