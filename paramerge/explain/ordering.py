"""Second look: the orders in which the adapters that are there may have been applied, each fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from paramerge.adapters.overflow import overflowing
from paramerge.explain.candidates import Candidate, change_of, projection
from paramerge.explain.layer_fit import LayerFit
from paramerge.explain.order_fit import fit_order
from paramerge.explain.orders import Order, possible_orders
from paramerge.explain.outcome import Outcomes
from paramerge.explain.strengths import CERTAIN
from paramerge.explain.survey import Seen, bases_of
from paramerge.extract.difference import Differences
from paramerge.models.names import ModuleName

_NO_MATTER = 1e-3
"""Orders whose residuals differ by less than this, in variances of a number, give the same."""

_HOPELESS = 1000.0
"""Orders whose squared residual is so many variances larger are not followed further."""


@dataclass(frozen=True)
class Ordering:
    """The best order, with the fits of layers in it.

    Attributes
    ----------
    order:
        The best.
    fits:
        By layer, where the order may make a difference.
    worse:
        Every other order, with the rise of the squared residual in units of a number's variance: a chi
        square. Ascending.
    """

    order: Order
    fits: Mapping[ModuleName, LayerFit]
    worse: tuple[tuple[Order, float], ...]

    @property
    def matters(self) -> bool:
        """Whether any other order gives something else."""
        return any(rise > _NO_MATTER for _, rise in self.worse)

    @property
    def told(self) -> bool:
        """Whether every order that gives something else explains the checkpoint worse than by chance."""
        return all(rise <= _NO_MATTER or rise > CERTAIN**2 for _, rise in self.worse)

    @property
    def second(self) -> Order:
        """The next best order that gives something else; empty where there is none."""
        return next((order for order, rise in self.worse if rise > _NO_MATTER), ())


def find_order(
    differences: Differences,
    layers: Sequence[Seen],
    candidates: Sequence[Candidate],
    strengths: Mapping[int, float],
    progress: Callable[[int, int], None],
) -> Ordering:
    """Fit every possible order of the candidates that ``strengths`` names, from these strengths on.

    An order that is far worse than another after some layers is not looked at further.
    """
    kinds = {place: candidates[place].kind for place in strengths}
    orders = possible_orders(kinds)
    if all(kind == "additive" for kind in kinds.values()) or not kinds:
        return Ordering(orders[0] if kinds else (), {}, ())
    fits: dict[Order, dict[ModuleName, LayerFit]] = {order: {} for order in orders}
    rises = dict.fromkeys(orders, 0.0)
    live = orders
    for done, seen in enumerate(layers):
        progress(done, len(layers))
        if not any(kinds.get(place, "additive") != "additive" for place in seen.fit.places):
            continue
        with overflowing():
            found = _fits(differences, seen, candidates, live, strengths)
        least = min(found.values(), key=lambda fit: fit.residual)
        for order, fit in found.items():
            fits[order][seen.name] = fit
            rises[order] += (fit.residual - least.residual) / least.variance
        lowest = min(rises[order] for order in live)
        live = [order for order in live if rises[order] - lowest < _HOPELESS]
    progress(len(layers), len(layers))
    best = min(live, key=rises.__getitem__)
    worse = sorted(((o, rises[o] - rises[best]) for o in orders if o != best), key=lambda pair: pair[1])
    return Ordering(best, fits[best], tuple(worse))


def _fits(
    differences: Differences,
    seen: Seen,
    candidates: Sequence[Candidate],
    orders: Sequence[Order],
    strengths: Mapping[int, float],
) -> dict[Order, LayerFit]:
    """The fit of one layer in each order; orders that are one for this layer share it."""
    here = {order: _at_layer(order, seen.fit.places) for order in orders}
    alone = next(iter(here.values()))
    if [len(step) for step in alone] == [1] and candidates[alone[0][0]].kind == "para":
        return dict.fromkeys(orders, seen.fit)  # linear in its strength: the first look was right
    layer = differences.at(seen.name)
    if layer is None:
        raise TypeError(f"{seen.name} has changed")
    modules = {place: candidates[place].modules[seen.name] for place in seen.fit.places}
    bases = bases_of(layer, modules)
    outcomes = Outcomes(seen.name, modules, bases, layer.base)
    others = {
        place: projection(bases[place], layer.base) if place in bases else change_of(module, layer.base)
        for place, module in modules.items()
        if place not in strengths
    }
    known = {own: fit_order(layer, outcomes, own, strengths, others) for own in dict.fromkeys(here.values())}
    return {order: known[own] for order, own in here.items()}


def _at_layer(order: Order, places: Sequence[int]) -> Order:
    """The steps of ``order`` at a layer that these candidates have."""
    steps = (tuple(place for place in step if place in places) for step in order)
    return tuple(step for step in steps if step)
