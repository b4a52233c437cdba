"""A merge of checkpoints as a graph: steps that merge models and each other's results.

Models and steps are numbered together, models first: with three models, 3 is the result of the first step.
The result of the last step is the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paramerge.merge.methods.method import Method
from paramerge.resolve.blocks import BlockWeights


@dataclass(frozen=True)
class MergeStep:
    """One merge: a method, its inputs, its parameters, and weights by block.

    Attributes
    ----------
    inputs:
        The numbers of models and of earlier steps.
    parameters:
        As :meth:`paramerge.merge.methods.method.Method.read` gives them.
    blocks:
        By the place of an input (0 is the first): factors on its weight, or, in a method that has a strength
        for all, on that strength (by whichever place).
    """

    method: Method
    inputs: tuple[int, ...]
    parameters: Mapping[str, object]
    blocks: Mapping[int, BlockWeights] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeGraph:
    """A whole merge.

    Attributes
    ----------
    steps:
        In an order in which each comes after those that it needs.
    components:
        By component, the number of the model that it is taken from as it is.
    prune:
        Whether EMA weights and a trainer's state are left out.
    """

    steps: tuple[MergeStep, ...]
    components: Mapping[str, int] = field(default_factory=dict)
    prune: bool = False
