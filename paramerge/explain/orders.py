"""Orders in which adapters may have been applied, as far as they differ in what comes out.

An order is a tuple of steps, each a tuple of candidates: one, or several PaRas that were merged jointly. Two
steps that add the same to every weight commute; all others may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, permutations

Order = tuple[tuple[int, ...], ...]

_MOST_PERMUTED = 4
"""The most adapters of which all orders are tried."""


def possible_orders(kinds: Mapping[int, str]) -> list[Order]:
    """The orders of the candidates (by their ``kinds``) that can differ, PaRas before others first.

    Of more than four adapters: PaRas first, and of that each with one adapter moved to the front.
    """
    rank = {"para": 0, "dependent": 1, "additive": 2}
    usual = sorted(kinds, key=lambda place: (rank[kinds[place]], place))
    found: dict[Order, None] = {}
    for sequence in _sequences(usual, kinds):
        for joint in (True, False):
            found[_canonical(sequence, kinds, joint)] = None
    return list(found)


def _sequences(usual: Sequence[int], kinds: Mapping[int, str]) -> Iterator[tuple[int, ...]]:
    if len(usual) <= _MOST_PERMUTED:
        yield from permutations(usual)
        return
    yield tuple(usual)
    for place in usual:
        yield (place, *(other for other in usual if other != place))


def _canonical(sequence: Sequence[int], kinds: Mapping[int, str], joint: bool) -> Order:
    """The steps, in one order for all that commute."""
    steps: list[tuple[int, ...]] = []
    for kind, run in groupby(sequence, kinds.__getitem__):
        places = list(run)
        if kind == "additive" or (kind == "para" and joint):
            places.sort()
        if kind == "para" and joint:
            steps.append(tuple(places))
        else:
            steps += [(place,) for place in places]
    return tuple(steps)
