"""The kinds of models that are trained, a file a kind; each knows its pipeline by the name of its class."""

from __future__ import annotations

from typing import Any

from paramerge.errors import UsageError
from paramerge.training.models.flux import FLUX
from paramerge.training.models.record import ModelKind
from paramerge.training.models.sd3 import SD3
from paramerge.training.models.unet import UNET
from paramerge.training.models.z_image import Z_IMAGE

__all__ = ["KINDS", "TRANSFORMERS", "ModelKind", "kind_of"]

KINDS = (UNET, FLUX, SD3, Z_IMAGE)
TRANSFORMERS = tuple(kind for kind in KINDS if kind.component == "transformer")


def kind_of(pipeline: Any) -> ModelKind:
    """The kind of a loaded pipeline.

    Raises
    ------
    UsageError
        The trainer has none for it.
    """
    if getattr(pipeline, "unet", None) is not None:
        return UNET
    name = type(pipeline).__name__
    for kind in TRANSFORMERS:
        if name in kind.pipelines:
            return kind
    raise UsageError(
        "the trainer does not know this kind of model",
        where="model",
        expected=", ".join(name for kind in KINDS for name in kind.pipelines),
        found=name,
    )
