"""The interface of every method to the loop: its parameters, and how to save them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from paramerge.errors import UsageError
from paramerge.models.subsets import subset
from paramerge.training.config import TrainConfig
from paramerge.training.models.record import ModelKind
from paramerge.training.models.unet import UNET

__all__ = ["TEXT_LAYERS", "Trained", "inject", "layers_of", "layers_to_train", "trainable", "unet_layers"]

TEXT_LAYERS = r"(?:.*\.)?self_attn\.(?:q_proj|k_proj|v_proj|out_proj)"
"""The layers of a text encoder that an adapter is put on."""
_ATTENTION = r"(?:.+\.)?attn[12]\.to_(?:q|k|v|out\.0)"


def _nothing(step: int) -> None:
    """Do nothing before a step, as most methods."""


@dataclass(frozen=True)
class Trained:
    """Parameters in training.

    Attributes
    ----------
    parameters:
        By a name that is the same in every run; all float32.
    save:
        Writes the adapter into a folder, with metadata; the files or folders it wrote.
    decays:
        Whether weight decay means something for them.
    text:
        Whether the text encoders change, so that prompts are encoded anew in every step.
    before_step:
        Called with the number of steps done.
    words:
        The parameters beside an adapter that are vectors of a new word: they have a rate of their own, and do
        not decay.
    """

    parameters: Mapping[str, nn.Parameter]
    save: Callable[[Path, Mapping[str, str]], list[Path]]
    decays: bool = True
    text: bool = False
    before_step: Callable[[int], None] = _nothing
    words: frozenset[str] = frozenset()


def layers_to_train(config: TrainConfig, kind: ModelKind) -> str:
    """The model's layers to train, as a regular expression for whole names.

    Raises
    ------
    UsageError
        There is no such set of layers.
    """
    if not kind.subsets:
        name = config.subset or "ex-ca"
        return _ATTENTION if name == "attention" else subset(name).pattern
    chosen = config.subset or next(iter(kind.subsets))
    if chosen not in kind.subsets:
        raise UsageError(
            f"{kind.name} has no such set of layers",
            where="subset",
            expected=", ".join(kind.subsets),
            found=chosen,
        )
    return kind.subsets[chosen]


def unet_layers(config: TrainConfig) -> str:
    """The UNet's layers to train, as a regular expression for whole names."""
    return layers_to_train(config, UNET)


def inject(settings: Any, model: Any, name: str) -> None:
    """Put PEFT's adapter ``settings`` under ``name`` on the layers of ``model``.

    By PEFT itself: ``add_adapter`` of newer transformers wants a newer PEFT than there is.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(settings, model, name)
    model._hf_peft_config_loaded = True  # what diffusers and transformers ask before they list adapters


def layers_of(model: nn.Module, pattern: str) -> dict[str, Any]:
    """The linear and convolution layers whose whole name matches, by name."""
    import re

    kinds = (nn.Linear, nn.Conv2d)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds) and re.fullmatch(pattern, name)
    }


def trainable(models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters that have a gradient, by component and name, made float32."""
    found = {}
    for component, model in models.items():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                found[f"{component}.{name}"] = parameter
    return found
