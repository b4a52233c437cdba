"""PaRa, by the tuner of :mod:`paramerge.peft`, saved in the native format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paramerge.peft import PaRaConfig, hoist_bases, save_para, set_gate
from paramerge.training.config import TrainConfig
from paramerge.training.methods import text_encoders
from paramerge.training.methods.trained import TEXT_LAYERS, Trained, inject, layers_to_train, trainable
from paramerge.training.models import kind_of

__all__ = ["attach"]

_NAME = "para"


def attach(pipeline: Any, config: TrainConfig) -> Trained:
    """A PaRa on the model's layers of the subset, and on the text encoders' attention if asked for."""
    kind = kind_of(pipeline)
    model = getattr(pipeline, kind.component)
    models = {kind.component: model}
    settings = _settings(config, model.device)
    inject(PaRaConfig(target_modules=layers_to_train(config, kind), **settings), model, _NAME)
    if config.train_text_encoder:
        models |= text_encoders(pipeline)
        for encoder in text_encoders(pipeline).values():
            inject(PaRaConfig(target_modules=TEXT_LAYERS, **settings), encoder, _NAME)
    for model in models.values():
        hoist_bases(model)

    def save(folder: Path, metadata: Mapping[str, str]) -> list[Path]:
        path = folder / "adapter.safetensors"
        architecture = kind.name if kind.subsets else None
        save_para(pipeline, path, adapter_name=_NAME, metadata=metadata, architecture=architecture)
        return [path]

    def open_gate(step: int) -> None:
        for model in models.values():
            set_gate(model, min(1.0, (step + 1) / max(1, config.gate_steps)), _NAME)

    gate: dict[str, Any] = {"before_step": open_gate} if config.init == "gate" else {}
    return Trained(trainable(models), save, decays=False, text=config.train_text_encoder, **gate)


def _settings(config: TrainConfig, device: Any) -> dict[str, Any]:
    method = config.orthonormalise
    if method == "auto":  # CUDA's QR goes through the matrices one by one, column by column
        method = "cholesky" if device.type == "cuda" else "qr"
    return {
        "r": config.rank,
        "gamma": config.gamma,
        "gamma_layers": config.gamma_on,
        "init": config.init,
        "method": method,
    }
