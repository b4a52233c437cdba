"""Many claims at once: p adjusted for all claims of a seed, and what that leaves of the findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramerge.training.experiments.verdict import FAILS, HOLDS, holm

__all__ = ["Adjusted", "Corrected", "adjusted_p", "corrected"]

LEVEL = 0.05

Adjusted = Mapping[tuple[Path, int], float]
"""The adjusted p of a verdict, by its experiment's folder and its place there."""
Summaries = Mapping[Path, Mapping[str, Any]]
"""``summary.json`` by its folder."""


@dataclass(frozen=True)
class Corrected:
    """The claims of one seed that have a test, those that were told, and those told after the correction."""

    seed: int
    claims: int
    findings: int
    kept: int


def adjusted_p(summaries: Summaries) -> Adjusted:
    """Holm's p of all verdicts with one seed, budget, model and data; each set of numbers counts once."""
    found: dict[tuple[Path, int], float] = {}
    for own in _families(summaries):
        found |= holm({(folder, place): verdict["p"] for folder, place, verdict in _tested(own)})
    return found


def corrected(summaries: Summaries) -> list[Corrected]:
    """The findings that the correction leaves, for each seed that has claims with a test."""
    adjusted, counts = adjusted_p(summaries), []
    for own in _families(summaries):
        tested = list(_tested(own))
        told = [(folder, place) for folder, place, v in tested if v["verdict"] in (HOLDS, FAILS)]
        kept = sum(adjusted[key] <= LEVEL for key in told)
        if tested:
            counts.append(Corrected(next(iter(own.values()))["seed"], len(tested), len(told), kept))
    return counts


def _families(summaries: Summaries) -> list[Summaries]:
    families: dict[tuple[Any, ...], dict[Path, Mapping[str, Any]]] = {}
    for folder, summary in summaries.items():
        names = ("budget", "model", "data", "data_sha256", "seed")
        families.setdefault(tuple(summary[name] for name in names), {})[folder] = summary
    return list(families.values())


def _tested(own: Summaries) -> Iterator[tuple[Path, int, Mapping[str, Any]]]:
    for folder, summary in own.items():
        for place, verdict in enumerate(summary["verdicts"]):
            if verdict.get("p") is not None and not verdict.get("same_as"):
                yield folder, place, verdict
