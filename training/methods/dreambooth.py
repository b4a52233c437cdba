"""DreamBooth itself: the whole UNet, and the text encoders if asked for; saved as a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paramerge.errors import OutputError
from paramerge.files.writer import write_bytes
from paramerge.training.config import TrainConfig
from paramerge.training.methods import text_encoders
from paramerge.training.methods.trained import Trained, trainable

__all__ = ["attach"]


def attach(pipeline: Any, config: TrainConfig) -> Trained:
    """Every parameter of the UNet."""
    models = {"unet": pipeline.unet}
    if config.train_text_encoder:
        models |= text_encoders(pipeline)
    for model in models.values():
        model.requires_grad_(True)

    def save(folder: Path, metadata: Mapping[str, str]) -> list[Path]:
        place = folder / "model"
        try:
            pipeline.save_pretrained(place, safe_serialization=True)
        except OSError as error:
            raise OutputError(f"the model cannot be written ({error})", where=place) from error
        write_bytes(place / "training.json", json.dumps(dict(metadata), indent=2).encode())
        return [place]

    return Trained(trainable(models), save, text=config.train_text_encoder)
