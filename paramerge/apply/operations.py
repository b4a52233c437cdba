"""The operations of adapters on a layer, in their order, as data: no tensor is read."""

from __future__ import annotations

from dataclasses import dataclass

from paramerge.adapters import LayerModule, LoraModule, ParaModule
from paramerge.checkpoints.targets import Target


@dataclass(frozen=True, slots=True)
class ParaPart:
    """One PaRa's basis for a layer; ``step`` is its place among the steps."""

    step: int
    module: ParaModule
    strength: float


@dataclass(frozen=True, slots=True)
class ParaOp:
    """One PaRa, or several merged jointly, on a layer; ``limit`` is the rank boundary (None: no gamma)."""

    parts: tuple[ParaPart, ...]
    limit: int | None

    @property
    def steps(self) -> tuple[int, ...]:
        """The places of its PaRas among the steps."""
        return tuple(part.step for part in self.parts)

    @property
    def rank(self) -> int:
        """The most directions that it can remove."""
        rank = sum(part.module.rank for part in self.parts)
        return rank if self.limit is None else min(rank, self.limit)

    @property
    def numbers(self) -> int:
        """The number of its factors' numbers."""
        return sum(2 * part.module.out_features * part.module.rank for part in self.parts)


@dataclass(frozen=True, slots=True)
class LoraOp:
    """One LoRA on a layer; ``strength`` is the user's scale, without ``alpha / rank``."""

    step: int
    module: LoraModule
    strength: float

    @property
    def steps(self) -> tuple[int, ...]:
        """Its place among the steps."""
        return (self.step,)

    @property
    def rank(self) -> int:
        """The most that the rank of its change can be."""
        return self.module.rank

    @property
    def numbers(self) -> int:
        """The number of its factors' numbers."""
        return self.module.rank * (self.module.out_features + self.module.in_features)


@dataclass(frozen=True, slots=True)
class FamilyOp:
    """An adapter of any other family on a layer, a norm, a bias or an embedding."""

    step: int
    module: LayerModule
    strength: float

    @property
    def steps(self) -> tuple[int, ...]:
        """Its place among the steps."""
        return (self.step,)

    @property
    def rank(self) -> int | None:
        """The most that the rank of its change can be; None where that is the layer's own."""
        return self.module.rank_bound

    @property
    def numbers(self) -> int:
        """The number of its stored numbers."""
        return sum(tensor.info.elements for tensor in self.module.tensors)


Op = ParaOp | LoraOp | FamilyOp


@dataclass(frozen=True, slots=True)
class Edit:
    """The change of one layer: its place in the checkpoint and the operations in order."""

    target: Target
    ops: tuple[Op, ...]

    @property
    def needs_whole(self) -> bool:
        """Whether an operation depends on the weight beyond ``Q^T W``: it must be in memory as a whole."""
        return any(isinstance(op, FamilyOp) and op.module.depends_on_weight for op in self.ops)
