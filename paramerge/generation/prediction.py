"""The prediction that a single file states for its model: marks among its keys, and its metadata."""

from __future__ import annotations

from typing import Any

from paramerge.checkpoints.layout import SINGLE_FILE, Base

_METADATA = "modelspec.prediction_type"
_SPELLINGS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def stated_prediction(base: Base) -> dict[str, Any]:
    """The settings of a scheduler that ``base`` states; empty where it states none, or is a folder.

    Trainers of v-prediction models write an empty tensor ``v_pred`` among the weights; ``ztsnr`` where the
    schedule ends in pure noise.
    """
    if base.layout != SINGLE_FILE:
        return {}
    header = base.files[0].header
    found: dict[str, Any] = {}
    kind = _SPELLINGS.get(header.metadata.get(_METADATA, ""))
    if "v_pred" in header.tensors or kind == "v_prediction":
        found["prediction_type"] = "v_prediction"
    elif kind is not None:
        found["prediction_type"] = kind
    if "ztsnr" in header.tensors:
        found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return found


def set_prediction(pipeline: Any, **settings: Any) -> None:
    """Give the pipeline's scheduler these settings; samplers that are made from it later have them, too."""
    if settings:
        scheduler = pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config({**scheduler.config, **settings})
