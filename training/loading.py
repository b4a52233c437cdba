"""The pipeline to train, and what it cannot be trained with."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError, UsageError
from paramerge.generation.loading import load_pipeline
from paramerge.generation.prediction import set_prediction
from paramerge.shipped import named_model
from paramerge.strict_json import read_object
from paramerge.training.autoencoder import autoencoder_from
from paramerge.training.config import TrainConfig
from paramerge.training.models import TRANSFORMERS, ModelKind, kind_of
from paramerge.training.models.sd3 import SD3

__all__ = ["load_model"]

_INDEX = "model_index.json"
_FOR_UNETS = ("min_snr_gamma", "debiased", "prediction_type", "train_text_encoder", "pivotal")


def load_model(config: TrainConfig, dtype: Any) -> tuple[Any, ModelKind]:
    """The pipeline on the CPU, its weights as ``dtype`` and its autoencoder in float32; and its kind.

    Raises
    ------
    CheckpointError
        The model or the autoencoder cannot be loaded.
    UsageError
        The settings are not for this kind of model.
    """
    pipeline = _transformer(config, dtype)
    if pipeline is None:
        base = open_base(named_model(config.model))
        pipeline = load_pipeline(base, dtype, vae_dtype=torch.float32)
    kind = kind_of(pipeline)
    _check(config, kind)
    if config.vae is not None:
        pipeline.vae = autoencoder_from(config.vae, pipeline.vae)
    if config.prediction_type is not None:
        set_prediction(pipeline, prediction_type=config.prediction_type)
    return pipeline, kind


def _transformer(config: TrainConfig, dtype: Any) -> Any:
    """The pipeline of a diffusers folder of a transformer that is trained here; None for others."""
    folder = named_model(config.model)
    if not (folder / _INDEX).is_file():
        return None
    name = read_object(folder / _INDEX, error=CheckpointError).get("_class_name")
    if not any(name in kind.pipelines for kind in TRANSFORMERS):
        return None
    import diffusers

    # Stable Diffusion 3 goes without T5, too
    parts = ("text_encoder_3", "tokenizer_3") if name in SD3.pipelines else ()
    without = {part: None for part in parts if not (folder / part).is_dir()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            made = getattr(diffusers, str(name)).from_pretrained(
                str(folder),
                torch_dtype={"default": dtype, "vae": torch.float32},
                use_safetensors=True,
                local_files_only=True,
                **without,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"diffusers cannot load this model ({reason})", where=folder) from error
    return made


def _check(config: TrainConfig, kind: ModelKind) -> None:
    if kind.methods is not None and config.method not in kind.methods:
        raise UsageError(
            "this kind of model is not trained by this method",
            where="method",
            expected=f"{' or '.join(kind.methods)} for {kind.name}",
            found=config.method,
        )
    if not kind.flow:
        return
    for name in _FOR_UNETS:
        if getattr(config, name):
            raise UsageError(
                "this setting is for Stable Diffusion's UNets",
                where=name,
                expected=f"none for {kind.name}",
                found=getattr(config, name),
            )
    if config.prompt_chunks > 1:
        raise UsageError(
            "this kind of model reads long texts whole",
            where="prompt_chunks",
            expected=1,
            found=config.prompt_chunks,
        )
