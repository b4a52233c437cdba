"""What decides the meaning of an adapter's tensors beside the tensors themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from paramerge.adapters.group import Group
from paramerge.errors import AdapterError
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.models.names import ModuleName

__all__ = ["Rules", "Scaling", "Tuner", "scale_by_rank"]


class Scaling(NamedTuple):
    """How a layer is scaled where the file has no alpha of its own for it: see :class:`LoraModule`."""

    alpha: float | None = None
    rslora: bool = False


def scale_by_rank(name: ModuleName, rank: int) -> Scaling:
    """alpha = rank: the rule of every dialect for a layer without alpha."""
    return Scaling()


class Tuner(Protocol):
    """PEFT's configuration of a family, read."""

    @property
    def tuner(self) -> str:
        """PEFT's ``peft_type``."""

    @property
    def shared_block(self) -> bool:
        """OFT: whether one block turns all groups of inputs."""

    @property
    def series_terms(self) -> int | None:
        """OFT: terms of the Cayley transform's series, or None for the inverse."""

    def rank_of(self, path: str) -> int | None:
        """The rank that is configured for the layer ``path``, where this tuner has ranks."""

    def scales_inputs(self, path: str) -> bool:
        """IA3: whether the inputs of the layer ``path`` are scaled, and not its outputs."""


@dataclass(frozen=True)
class Rules:
    """The rules of one file.

    Attributes
    ----------
    scaling:
        From a layer's name and rank to how it is scaled without an alpha of its own.
    configuration:
        PEFT's, where the file comes with one.
    krona:
        Keys of Kronecker factors that look like a LoRA's.
    paper_order:
        Whether a DiffuseKronA is the paper's plain ``A (x) B``.
    """

    scaling: Callable[[ModuleName, int], Scaling] = scale_by_rank
    configuration: Tuner | None = None
    interpretation: Interpretation = BY_TRAINER
    krona: frozenset[str] = field(default=frozenset(), repr=False)
    paper_order: bool = False

    def alpha(self, group: Group, rank: int | None) -> tuple[float | None, str | None]:
        """The alpha that the file states for a layer, and its key; or the configuration's.

        Raises
        ------
        AdapterError
            The configuration asks for rank-stabilised scaling, which LoRA alone has.
        """
        stated = group.number("alpha")
        if stated is not None or rank is None:
            return stated, group.key_of("alpha")
        alpha, rslora = self.scaling(group.name, rank)
        if rslora:
            raise AdapterError("rank-stabilised scaling is not known for this family", where=group.name)
        return alpha, None

    def tuner(self, group: Group, name: str) -> Tuner:
        """The configuration of the tuner ``name``, where tensors have no meaning without it.

        Raises
        ------
        AdapterError
            There is none, or it is of another tuner.
        """
        if self.configuration is None or self.configuration.tuner != name:
            found = "none" if self.configuration is None else f"peft_type {self.configuration.tuner}"
            raise AdapterError(
                f"these are PEFT's tensors of {name}, and the configuration that belongs to them is missing",
                where=group.name,
                expected=f"adapter_config.json with peft_type {name}",
                found=found,
                hint="give the folder that holds adapter_model.safetensors and adapter_config.json",
            )
        return self.configuration
