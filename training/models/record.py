"""The interface of every kind of model to the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from paramerge.training.config import TrainConfig
    from paramerge.training.prompts import Prompts

__all__ = ["ModelKind"]

Predict = Callable[[Any, "Tensor", "Tensor", "Prompts", "Tensor", "TrainConfig", Any], "Tensor"]


@dataclass(frozen=True)
class ModelKind:
    """One kind of model.

    Attributes
    ----------
    name:
        The architecture's name in files.
    pipelines:
        The classes of diffusers that load it.
    component:
        The part of the pipeline that is trained.
    flow:
        Whether it is trained by flow matching; otherwise by noise or velocity.
    encode:
        The embeddings of one text, given the pipeline, the text and the device.
    predict:
        The prediction (n, c, h, w) given the model, noisy latents, times, embeddings, SDXL's time ids, the
        settings and the dtype.
    subsets:
        Names of sets of layers, each a regular expression for whole names; the first where none is asked for.
        Without any, the paper's.
    side_step:
        What the sides of pictures must be multiples of.
    methods:
        The methods that it can be trained with; None for all.
    """

    name: str
    pipelines: tuple[str, ...]
    component: str
    flow: bool
    encode: Callable[[Any, str, Any], Prompts]
    predict: Predict
    subsets: Mapping[str, str] = field(default_factory=dict)
    side_step: int = 8
    methods: tuple[str, ...] | None = None
