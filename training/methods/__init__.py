"""The training methods, by name; each is in a file of its own."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from paramerge.training.config import TrainConfig
from paramerge.training.methods.trained import Trained

__all__ = ["Trained", "attach"]

_PLACES = {
    "para": "para",
    "lora": "peft_adapters",
    "dora": "peft_adapters",
    "oft": "peft_adapters",
    "boft": "peft_adapters",
    "loha": "peft_adapters",
    "lokr": "peft_adapters",
    "krona": "krona",
    "svdiff": "svdiff",
    "dreambooth": "dreambooth",
    "textual-inversion": "textual_inversion",
}


def attach(pipeline: Any, config: TrainConfig) -> Trained:
    """Make ``config.method``'s parameters on the models of ``pipeline``, in float32; all else is frozen.

    The parameters depend on torch's global generator, which the caller seeds.
    """
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    module = importlib.import_module(f"paramerge.training.methods.{_PLACES[config.method]}")
    trained: Trained = module.attach(pipeline, config)
    if config.pivotal:
        from paramerge.training.methods.pivotal import with_word

        return with_word(trained, pipeline, config)
    return trained


def text_encoders(pipeline: Any) -> dict[str, Any]:
    """The pipeline's text encoders by component."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return {name: part for name in names if (part := getattr(pipeline, name, None)) is not None}
