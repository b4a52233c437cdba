"""Warnings of a merge of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from paramerge.checkpoints.layout import Base
from paramerge.files.hashing import cached_sha256
from paramerge.merge.checkpoints.graph import MergeGraph

_ROUNDING = 1e-6


def said_of(models: Sequence[Base], graph: MergeGraph) -> Iterator[str]:
    """Warnings: the same file twice, weights that do not sum to one."""
    for one, other in combinations(models, 2):
        if _same(one, other):
            names = one.path.name if one.path == other.path else f"{one.path.name} and {other.path.name}"
            yield f"{names}: the same model is given twice"
    for step in graph.steps:
        weights = step.parameters.get("weights")
        if step.method.name != "weighted-sum" or not isinstance(weights, tuple):
            continue
        total = sum(weights)
        if len(weights) == len(step.inputs) and not step.blocks and abs(total - 1) > _ROUNDING:
            yield (
                f"the weights sum to {total:g}, not to 1: the model as a whole becomes larger or smaller "
                "by that factor"
            )


def _same(one: Base, other: Base) -> bool:
    """Whether two models are the same files, by their places or by hashes that are known."""
    a, b = one.weight_sources, other.weight_sources
    if len(a) != len(b) or any(x.size != y.size for x, y in zip(a, b, strict=True)):
        return False
    return all(
        ((x.stamp.inode, x.stamp.device) == (y.stamp.inode, y.stamp.device) and x.stamp.inode != 0)
        or (cached_sha256(x) or x.path) == (cached_sha256(y) or y.path)
        for x, y in zip(a, b, strict=True)
    )
