"""The answers of ``explain``: each adapter with its strength, the order, and what is left over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from paramerge.models.names import ModuleName

Verdict = Literal["there", "absent", "unclear"]


@dataclass(frozen=True)
class GoneDirections:
    """The directions of a PaRa, over all layers that it has and that changed.

    Attributes
    ----------
    all:
        The number of them.
    gone:
        Those where the checkpoint has nothing left but rounding.
    refilled:
        Those that are gone but for what other adapters add there.
    cut:
        Layers in which some directions are gone and the others as they were: a rank boundary.
    """

    all: int
    gone: int
    refilled: int
    cut: int


@dataclass(frozen=True)
class AdapterFinding:
    """One adapter, and whether it is in the checkpoint.

    Attributes
    ----------
    verdict:
        ``there``; ``absent`` (0 is within the error bar, or so near that chance explains it); ``unclear``
        (what there is may be this adapter or another one, named in ``like``).
    strength, bar:
        The strength, and its 95 percent error bar.
    most:
        The largest strength, either way, that is within the bar.
    layers, changed:
        Layers of the adapter that the checkpoint has, and of these the ones that it changed.
    uneven:
        Whether its strength differs between layers by more than rounding; ``lowest`` and ``highest`` are
        those of single layers.
    share:
        ``||s X|| / ||D||``: the size of its change beside the whole change of the checkpoint.
    like:
        Adapters that it cannot be told apart from.
    directions:
        Of a PaRa.
    """

    name: str
    family: str
    verdict: Verdict
    strength: float
    bar: float
    layers: int
    changed: int
    uneven: bool = False
    lowest: float = math.nan
    highest: float = math.nan
    share: float = 0.0
    like: tuple[str, ...] = ()
    directions: GoneDirections | None = None

    @property
    def most(self) -> float:
        """The largest strength that the bar allows."""
        return abs(self.strength) + self.bar


@dataclass(frozen=True)
class OrderFinding:
    """The order in which the adapters were applied.

    Attributes
    ----------
    steps:
        The names of the adapters that are there, in order; several in one step are PaRas merged jointly.
    matters:
        Whether another order would have given something else at all.
    told:
        Whether the other orders explain the checkpoint worse, by more than chance.
    second:
        The next best order, where there is one that differs.
    """

    steps: tuple[tuple[str, ...], ...]
    matters: bool
    told: bool
    second: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class LayerFinding:
    """One layer that is not the base's.

    Attributes
    ----------
    change:
        ``||W' - W||``, Frobenius.
    unexplained:
        The norm of what is left of it, without the part that rounding explains.
    strengths, bars:
        By adapter, on this layer alone.
    """

    name: ModuleName
    change: float
    unexplained: float
    strengths: Mapping[str, float] = field(default_factory=dict)
    bars: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The unexplained part of the change."""
        return self.unexplained / self.change if self.change else 0.0


@dataclass(frozen=True)
class Claim:
    """A step of the checkpoint's own recipe, beside what was found.

    ``agrees`` is None where the adapter was not given, or has block weights.
    """

    name: str
    strength: float
    found: str | None
    agrees: bool | None
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Findings on one checkpoint.

    Attributes
    ----------
    adapters:
        Those that are there first, in their order.
    layers:
        Those that changed, in the order of the model.
    unchanged:
        The number of layers, norms and biases that are the base's.
    beside:
        Changed tensors that no adapter reaches.
    left_out:
        What was in the folder and is no adapter for this base, with the reason.
    claims:
        The steps of the recipe, where there is one; ``order_claimed`` is whether its order is the one found.
    """

    file: str
    base: str
    architecture: str
    adapters: tuple[AdapterFinding, ...]
    order: OrderFinding
    layers: tuple[LayerFinding, ...] = field(repr=False)
    unchanged: int
    beside: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def change(self) -> float:
        """``||W' - W||`` over all layers."""
        return math.hypot(*(layer.change for layer in self.layers))

    @property
    def unexplained(self) -> float:
        """The part of :attr:`change` that neither the adapters nor rounding explain, 0 to about 1."""
        left = math.hypot(*(layer.unexplained for layer in self.layers))
        return left / self.change if self.change else 0.0
