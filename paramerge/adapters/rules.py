"""The rules that decide what an adapter's tensors mean, beside the tensors themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from paramerge.adapters.group import Group
from paramerge.adapters.peft_config import TunerSettings
from paramerge.adapters.scaling import Scaling, scale_by_rank
from paramerge.errors import AdapterError
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.models.names import ModuleName

_Settings = TypeVar("_Settings", bound=TunerSettings)


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
    configuration: TunerSettings | None = None
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

    def tuner(self, group: Group, name: str, kind: type[_Settings]) -> _Settings:
        """The settings of the tuner ``name``, where tensors have no meaning without them.

        Raises
        ------
        AdapterError
            There are none, or they are another tuner's.
        """
        settings = self.configuration
        if isinstance(settings, kind) and settings.tuner == name:
            return settings
        raise AdapterError(
            f"the configuration of PEFT's tensors of {name} is missing",
            where=group.name,
            expected=f"adapter_config.json with peft_type {name}",
            found="none" if settings is None else f"peft_type {settings.tuner}",
            hint="give the folder that holds adapter_model.safetensors and adapter_config.json",
        )
